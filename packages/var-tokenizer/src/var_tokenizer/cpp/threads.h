// The threads that all kernels share.
#pragma once

#include <cstdint>
#include <type_traits>

// How many threads work: OMP_NUM_THREADS where it is set, else the processors of the process.
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
