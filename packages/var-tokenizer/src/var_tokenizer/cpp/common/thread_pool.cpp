// The threads of the process: they take jobs one at a time, and sleep when there are none.
//
// OpenMP assigns the jobs beforehand, and its threads spin until the last has arrived: next to
// another busy process, all of them wait for whole slices of the scheduler's time. Here a thread
// that is not running has taken no job, and the others do its share.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "kernel.h"

namespace {

// Kernels follow each other within microseconds: looking for the next one costs less than sleeping.
constexpr int looks = 1000;

// Tells the processor that this thread waits for another.
inline void pause() {
#ifdef __x86_64__
    __builtin_ia32_pause();
#else
    asm volatile("yield");
#endif
}

template <typename Condition>
void look_for(Condition condition) {
    for (int i = 0; i < looks && !condition(); ++i) pause();
}

thread_local bool in_job = false;

class Threads {
   public:
    explicit Threads(int count) {
        try {
            for (; count_ < count; ++count_) std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {
            // the existing threads do the work
        }
    }

    int count() const { return count_; }

    void run(int64_t jobs, void (*work)(void*, int64_t), void* context) {
        std::unique_lock<std::mutex> turn(turn_, std::defer_lock);
        if (count_ == 1 || jobs <= 1 || in_job || !turn.try_lock()) {
            for (int64_t i = 0; i < jobs; ++i) work(context, i);
            return;
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_ = work, context_ = context, jobs_ = jobs;
            next_ = 0;
            open_ = true;
            ++calls_;
        }
        wake_.notify_all();
        take_jobs();
        look_for([this] { return helpers_ == 0; });
        std::unique_lock<std::mutex> lock(mutex_);
        open_ = false;  // for threads that wake up only now
        done_.wait(lock, [this] { return helpers_ == 0; });
    }

   private:
    void take_jobs() {
        in_job = true;
        for (int64_t i; (i = next_.fetch_add(1)) < jobs_;) work_(context_, i);
        in_job = false;
    }

    void serve() {
        for (uint64_t seen = 0;;) {
            look_for([&] { return calls_ != seen; });
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return calls_ != seen; });
            seen = calls_;
            if (!open_) continue;
            ++helpers_;
            lock.unlock();
            take_jobs();
            lock.lock();
            if (--helpers_ == 0) done_.notify_one();
        }
    }

    int count_ = 1;     // with the caller's; does not change once they are started
    std::mutex turn_;   // held by the call that has the threads
    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_, done_;
    std::atomic<uint64_t> calls_{0};
    std::atomic<int> helpers_{0};  // threads at work, without the caller's
    std::atomic<int64_t> next_{0};
    bool open_ = false;
    void (*work_)(void*, int64_t) = nullptr;
    void* context_ = nullptr;
    int64_t jobs_ = 0;
};

std::atomic<int> wanted{1};

Threads& threads() {
    static Threads* const instance =
        new Threads(wanted);  // never destroyed: its threads outlive main
    return *instance;
}

}  // namespace

// Sets how many threads work; has no effect after the first call. Without a call there is one, and
// there are fewer if the system gives no more.
EXPORT void start_threads(int count) { wanted = count, threads(); }

// How many threads work.
EXPORT int thread_count() { return threads().count(); }

// work(context, i) for every i of 0 .. jobs - 1, on whichever thread is free; returns when all are
// done. Within a job, and while another call has the threads, the caller does all jobs alone. Any
// thread may call at any time. `work` must not throw.
EXPORT void run_jobs(int64_t jobs, void (*work)(void* context, int64_t job), void* context) {
    threads().run(jobs, work, context);
}
