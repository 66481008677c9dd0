// The execution block of csrc/block.h on threads of the CPU, for ThreadSanitizer.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

class Team {
 public:
  explicit Team(int size) : size_(size), slots_(size) {}

  int size() const { return size_; }

  void sync() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t round = round_;
    if (++waiting_ == size_) {
      waiting_ = 0, ++round_;
      all_here_.notify_all();
    } else {
      all_here_.wait(lock, [&] { return round_ != round; });
    }
  }

  int64_t& slot(int rank) { return slots_[rank]; }

 private:
  const int size_;
  int waiting_ = 0;
  int64_t round_ = 0;
  std::mutex mutex_;
  std::condition_variable all_here_;
  std::vector<int64_t> slots_;
};

class ThreadBlock {
 public:
  ThreadBlock(Team& team, int rank) : team_(team), rank_(rank) {}

  int rank() const { return rank_; }
  int size() const { return team_.size(); }
  void sync() const { team_.sync(); }
  bool any(bool value) const {
    return reduced(value, [](bool a, bool b) { return a || b; });
  }
  template <class T>
  T sum(T value) const {
    return reduced(value, [](T a, T b) { return a + b; });
  }
  template <class T>
  T min(T value) const {
    return reduced(value, [](T a, T b) { return a < b ? a : b; });
  }

 private:
  template <class T, class F>
  T reduced(T value, F join) const {
    team_.slot(rank_) = static_cast<int64_t>(value);
    sync();
    T total = static_cast<T>(team_.slot(0));
    for (int i = 1; i < size(); ++i) total = join(total, static_cast<T>(team_.slot(i)));
    sync();
    return total;
  }

  Team& team_;
  const int rank_;
};

// Runs f(block) on every member of a team of `size` threads.
template <class F>
void on_team(int size, F f) {
  Team team(size);
  std::vector<std::thread> members;
  for (int rank = 0; rank < size; ++rank) members.emplace_back([&team, &f, rank] { f(ThreadBlock(team, rank)); });
  for (auto& member : members) member.join();
}
