// Marks the symbols that the library exports.

#ifndef ADAM_JAX_NATIVE_EXPORT_H_
#define ADAM_JAX_NATIVE_EXPORT_H_

#if defined(_WIN32)
#define ADAM_JAX_EXPORT __declspec(dllexport)
#else
#define ADAM_JAX_EXPORT __attribute__((visibility("default")))
#endif

#endif  // ADAM_JAX_NATIVE_EXPORT_H_
