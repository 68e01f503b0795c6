// The threads that all kernels share.
#pragma once

#include <cstdint>
#include <type_traits>

// Says how many threads shall work; without effect after the first call. One where nobody calls.
extern "C" void start_threads(int count);

// How many threads work.
extern "C" int thread_count();

// work(context, i) for every i of 0 .. jobs - 1, on whichever thread is free; returns when all
// are done. Within a job, and while another call has the threads, the caller does them alone.
extern "C" void run_jobs(int64_t jobs, void (*work)(void* context, int64_t job), void* context);

template <typename Work>
void parallel_for(int64_t jobs, Work&& work) {
    using Plain = std::remove_reference_t<Work>;
    run_jobs(
        jobs, [](void* context, int64_t job) { (*static_cast<Plain*>(context))(job); },
        const_cast<std::remove_const_t<Plain>*>(&work));
}
