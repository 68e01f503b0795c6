// Loops over the threads that all kernels of a process share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <type_traits>

// The functions of thread_pool.cpp, which only var_tokenizer's library has: open_kernels gets them.
struct ThreadPool {
    int (*thread_count)();
    void (*run_jobs)(int64_t jobs, void (*work)(void* context, int64_t job), void* context);
};
extern ThreadPool thread_pool;

inline int thread_count() { return thread_pool.thread_count(); }

// Whether so many multiply-adds are worth a second thread: waking it takes as long as a million,
// which is half of them.
inline bool worth_threads(int64_t multiply_adds) { return multiply_adds >= 1 << 21; }
inline int threads_for(int64_t multiply_adds) {
    return worth_threads(multiply_adds) ? thread_count() : 1;
}

// work(i) for every i of 0 .. jobs - 1, on whichever thread is free; returns when all are done.
// Throws what a job threw first. Any thread may call at any time.
template <typename Work>
void parallel_for(int64_t jobs, Work&& work) {
    struct Call {
        std::remove_reference_t<Work>& work;
        std::atomic_flag failed = ATOMIC_FLAG_INIT;
        std::exception_ptr error = nullptr;
    } call{work};
    thread_pool.run_jobs(
        jobs,
        [](void* context, int64_t job) {
            Call& call = *static_cast<Call*>(context);
            try {
                call.work(job);
            } catch (...) {
                if (!call.failed.test_and_set()) call.error = std::current_exception();
            }
        },
        &call);
    if (call.error) std::rethrow_exception(call.error);
}

// The same, in the caller's thread alone unless it is `worth` others.
template <typename Work>
void parallel_for_if(bool worth, int64_t jobs, Work&& work) {
    if (worth) return parallel_for(jobs, work);
    for (int64_t i = 0; i < jobs; ++i) work(i);
}

constexpr int64_t chunk_size = 1 << 14;

inline int64_t chunks_of(int64_t size) { return (size + chunk_size - 1) / chunk_size; }

// work(i, begin, end) for every chunk i of 0 .. size - 1. Chunks do not depend on the number of
// threads.
template <typename Work>
void over_chunks(int64_t size, Work work) {
    parallel_for(chunks_of(size),
                 [&](int64_t i) { work(i, i * chunk_size, std::min(size, (i + 1) * chunk_size)); });
}
