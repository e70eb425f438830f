// What a shared library shows. C and C++; a static one shows nothing to the outside.
#ifndef TIDEGATE_EXPORT_H_
#define TIDEGATE_EXPORT_H_

// TIDEGATE_SHARED is set, for the library and for those who link it, by the CMake package. A
// program that links the shared library without it works as well.
#if defined(TIDEGATE_SHARED)
#define TIDEGATE_EXPORT __attribute__((visibility("default")))
#define TIDEGATE_HIDDEN __attribute__((visibility("hidden")))
#else
#define TIDEGATE_EXPORT
#define TIDEGATE_HIDDEN
#endif

#endif  // TIDEGATE_EXPORT_H_
