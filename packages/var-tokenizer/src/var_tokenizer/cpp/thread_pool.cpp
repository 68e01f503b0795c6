// Threads that take jobs one at a time and sleep when there are none.
//
// OpenMP's loops give each thread its share beforehand and spin until the last has arrived: beside
// another busy process, all of them wait for whole slices of the scheduler's time. Here a thread
// that does not run has taken no job, and the others do its part.

#include "threads.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

// Kernels follow each other within microseconds: worth a look before sleeping, which costs more.
constexpr int looks = 1000;

template <typename Condition>
void look_for(Condition condition) {
    for (int i = 0; i < looks && !condition(); ++i) _mm_pause();
}

thread_local bool in_job = false;

class Threads {
   public:
    explicit Threads(int count) {
        try {
            for (; count_ < count; ++count_) std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {
            // the system gives no more threads: those that there are do the work
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
        open_ = false;  // a thread that wakes up now has come too late
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

    int count_ = 1;     // with the caller's; fixed once they are started
    std::mutex turn_;   // held by the call that has the threads
    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_, done_;
    std::atomic<uint64_t> calls_{0};
    std::atomic<int> helpers_{0};  // threads besides the caller's that are at its jobs
    std::atomic<int64_t> next_{0};
    bool open_ = false;
    void (*work_)(void*, int64_t) = nullptr;
    void* context_ = nullptr;
    int64_t jobs_ = 0;
};

std::atomic<int> wanted{1};

Threads& threads() {
    static Threads* const instance = new Threads(wanted);  // never destroyed: its threads outlive main
    return *instance;
}

}  // namespace

void start_threads(int count) { wanted = count, threads(); }

int thread_count() { return threads().count(); }

void run_jobs(int64_t jobs, void (*work)(void*, int64_t), void* context) {
    threads().run(jobs, work, context);
}
