// Calls kernels and writes what they leave in their arrays, which aarch64.py compares with the
// definitions.
//
//     results TOKENIZER_LIBRARY TRANSFORMER_LIBRARY TRAIN_LIBRARY ONEDNN_LIBRARY CALLS RESULTS

#include "calls.h"

int main(int argc, char** argv) {
    if (argc != 7) fail("expected six paths");
    const Libraries libraries(argv + 1);
    const std::string variant = libraries.open(2, argv[4]);
    const std::vector<Call> calls = read_calls(libraries, argv[5]);
    std::ofstream file(argv[6], std::ios::binary);
    for (const Call& call : calls) {
        for (const std::vector<char>& bytes : call.results()) {
            file.write(bytes.data(), std::streamsize(bytes.size()));
        }
    }
    if (!file.flush()) fail(std::string("cannot write ") + argv[6]);
    std::printf("%s\n", variant.c_str());
    return 0;
}
