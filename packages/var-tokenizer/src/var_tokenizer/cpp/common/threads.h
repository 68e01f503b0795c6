// The threads that all kernels share.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <type_traits>

// Says how many threads shall work; without effect after the first call. One where nobody calls,
// and fewer where the system gives no more.
extern "C" void start_threads(int count);

// How many threads work.
extern "C" int thread_count();

// work(context, i) for every i of 0 .. jobs - 1, on whichever thread is free; returns when all
// are done. Within a job, and while another call has the threads, the caller does them alone.
// Any thread may call at any time. `work` must not throw.
extern "C" void run_jobs(int64_t jobs, void (*work)(void* context, int64_t job), void* context);

// As run_jobs, for any function object. What a job throws, first, is thrown here after all jobs.
template <typename Work>
void parallel_for(int64_t jobs, Work&& work) {
    struct Call {
        std::remove_reference_t<Work>& work;
        std::atomic_flag failed = ATOMIC_FLAG_INIT;
        std::exception_ptr error = nullptr;
    } call{work};
    run_jobs(
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
