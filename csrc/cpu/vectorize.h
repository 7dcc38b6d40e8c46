// One portable binary, vectors as wide as the machine it runs on has: a plain function marked
// FRCNN_VECTORIZED is compiled once per level of x86-64 and the loader picks the widest that runs.
// It must be a non-template function at namespace scope, with its whole inner loop inlined.
// Where the compiler or the machine cannot do this (MSVC, ARM, whose baseline has vectors), it means nothing.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FRCNN_VECTORIZED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__linux__) && \
    ((defined(__clang__) && __clang_major__ >= 14) || (!defined(__clang__) && defined(__GNUC__)))
#define FRCNN_VECTORIZED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FRCNN_VECTORIZED
#endif

// For templates that such functions are made of: inlined into each of their versions.
#if defined(__GNUC__)
#define FRCNN_INLINE inline __attribute__((always_inline))
#else
#define FRCNN_INLINE inline
#endif

// Asks for the memory at an address that will be read soon, where the processor cannot guess it.
#if defined(__GNUC__)
#define FRCNN_PREFETCH(address) __builtin_prefetch(address)
#else
#define FRCNN_PREFETCH(address) static_cast<void>(address)
#endif
