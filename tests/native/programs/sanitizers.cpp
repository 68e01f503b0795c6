// Calls every pair of kernels from two threads, and compares their results with what each gives
// alone. sanitizers.py builds this and the libraries with a sanitizer, which then watches them
// without Python and MindSpore around them.
//
//     sanitizers TOKENIZER_LIBRARY TRANSFORMER_LIBRARY TRAIN_LIBRARY ONEDNN_LIBRARY CALLS

#include <thread>

#include "calls.h"

namespace {

constexpr int threads = 3;  // one more than those that call
constexpr int times = 3;    // so often does a thread call its kernel, so that the two overlap

template <typename Work>
void in_two_threads(Work work) {
    std::thread first([&] { work(0); }), second([&] { work(1); });
    first.join(), second.join();
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 6) fail("expected five paths");
    const Libraries libraries(argv + 1);
    const auto open = [&](int) { libraries.open(threads, argv[4]); };
    in_two_threads(open);
    const std::vector<Call> calls = read_calls(libraries, argv[5]);

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
