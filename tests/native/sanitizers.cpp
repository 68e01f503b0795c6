// Calls every pair of the kernels of kernels.txt from two threads, in both native libraries, and
// holds what they give against what they give alone. sanitizers.py builds all of it with a
// sanitizer, which then watches the libraries without Python and MindSpore around them.
//
//     sanitizers TOKENIZER_LIBRARY TRANSFORMER_LIBRARY ONEDNN_LIBRARY KERNELS_TXT

#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace {

using Kernel = int (*)(int, void**, int*, int64_t**, const char**, void*, void*);
constexpr int threads = 3;  // more than the two that call, so that they share
constexpr int times = 3;    // a thread calls its kernel this often, so that the two overlap

[[noreturn]] void fail(const std::string& message) {
    std::fprintf(stderr, "sanitizers: %s\n", message.c_str());
    std::exit(1);
}

template <typename Function>
Function symbol(void* library, const std::string& name) {
    void* found = dlsym(library, name.c_str());
    if (!found) fail("there is no " + name);
    return reinterpret_cast<Function>(found);
}

struct Array {
    std::vector<int64_t> shape;
    std::vector<char> bytes;  // on the heap: a sanitizer sees the byte after the last
};

// A word of kernels.txt, as it says at its top
Array parsed(const std::string& word, bool output, uint32_t& random) {
    const char kind = word[0];
    const size_t size = kind == 'b' ? 1 : 4;
    Array array;
    const auto put = [&](double value) {
        const float f = float(value);
        const int32_t i = int32_t(value);
        const bool b = value != 0;
        const void* from = kind == 'b' ? static_cast<const void*>(&b)
                           : kind == 'i' ? static_cast<const void*>(&i)
                                         : static_cast<const void*>(&f);
        array.bytes.insert(array.bytes.end(), static_cast<const char*>(from),
                           static_cast<const char*>(from) + size);
    };
    const size_t equals = word.find('=');
    std::string number;
    if (equals != std::string::npos) {
        std::istringstream values(word.substr(equals + 1));
        while (std::getline(values, number, ',')) put(std::stod(number));
        if (word[1] != '.') array.shape = {int64_t(array.bytes.size() / size)};
        return array;
    }
    std::istringstream sizes(word.substr(2));
    int64_t count = 1;
    while (std::getline(sizes, number, 'x')) {
        array.shape.push_back(std::stoll(number));
        count *= array.shape.back();
    }
    for (int64_t i = 0; i < count; ++i) {
        random = random * 1664525u + 1013904223u;
        const double unit = double(random >> 8) / (1 << 24);
        put(output ? -1 : kind == 'p' ? unit : 2 * unit - 1);
    }
    return array;
}

struct Call {
    std::string name;
    Kernel kernel;
    std::vector<Array> arrays;

    // All arrays after the call, because some kernels write into their inputs
    std::vector<std::vector<char>> results() const {
        std::vector<std::vector<char>> copies;
        std::vector<std::vector<int64_t>> sizes;
        std::vector<void*> params;
        std::vector<int64_t*> shapes;
        std::vector<int> axes;
        for (const Array& array : arrays) {
            copies.push_back(array.bytes);
            sizes.push_back(array.shape);
            axes.push_back(int(array.shape.size()));
        }
        for (size_t i = 0; i < arrays.size(); ++i) {
            params.push_back(copies[i].data());
            shapes.push_back(sizes[i].data());
        }
        const int status = kernel(int(params.size()), params.data(), axes.data(), shapes.data(),
                                  nullptr, nullptr, nullptr);
        if (status) fail(name + " returned " + std::to_string(status));
        return copies;
    }
};

template <typename Work>
void in_two_threads(Work work) {
    std::thread first([&] { work(0); }), second([&] { work(1); });
    first.join(), second.join();
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 5) fail("four paths are wanted");
    std::map<std::string, void*> libraries;
    const char* const names[] = {"tokenizer", "transformer"};
    for (int i = 0; i < 2; ++i) {
        libraries[names[i]] = dlopen(argv[1 + i], RTLD_NOW | RTLD_LOCAL);
        if (!libraries[names[i]]) fail(dlerror());
    }
    void* const shared = libraries["tokenizer"];
    const auto open = [&](int) {
        symbol<void (*)(int)>(shared, "start_threads")(threads);
        for (const auto& [name, library] : libraries) {
            const auto open_kernels =
                symbol<int (*)(const char*, const void*, const void*)>(library, "open_kernels");
            const int status = open_kernels(argv[3], dlsym(shared, "thread_count"),
                                            dlsym(shared, "run_jobs"));
            if (status) fail("open_kernels of " + name + " returned " + std::to_string(status));
        }
    };
    in_two_threads(open);

    std::vector<Call> calls;
    std::ifstream table(argv[4]);
    uint32_t random = 1;
    for (std::string line; std::getline(table, line);) {
        if (line.empty() || line[0] == '#') continue;
        std::istringstream words(line);
        std::string library, name, word;
        words >> library >> name;
        Call call{name, symbol<Kernel>(libraries.at(library), name), {}};
        for (bool output = false; words >> word;) {
            if (word == ">") output = true;
            else call.arrays.push_back(parsed(word, output, random));
        }
        calls.push_back(std::move(call));
    }
    if (calls.empty()) fail(std::string("no kernels in ") + argv[4]);

    std::vector<std::vector<std::vector<char>>> alone;
    for (const Call& call : calls) alone.push_back(call.results());
    int pairs = 0;
    for (size_t i = 0; i < calls.size(); ++i) {
        for (size_t j = i; j < calls.size(); ++j, ++pairs) {
            in_two_threads([&](int second) {
                const size_t mine = second ? j : i, other = second ? i : j;
                for (int k = 0; k < times; ++k) {
                    if (calls[mine].results() != alone[mine]) {
                        fail(calls[mine].name + " is wrong beside " + calls[other].name);
                    }
                }
                if (second) open(0);
            });
        }
    }
    std::printf("%d pairs of %zu calls: as alone\n", pairs, calls.size());
    return 0;
}
