/* The C API: running and streaming float32 models, for C and for languages that can call C. A thin
 * layer over the C++ API, whose headers explain more. No exception leaves it. It refuses files of
 * float64 (Python's layer.astype(numpy.float32) converts them), because it is meant for deployment;
 * float64 is for checking results, in C++ and Python.
 *
 * Functions return a status. After an error, tidegate_last_error() gives the reason in words, and
 * nothing has been written, except possibly the values of a read that the system ended halfway.
 * Handles are opaque; a null handle is an error, except for tidegate_..._free(), which ignore it.
 * Any number of threads may use one model or linear layer concurrently; one thread at a time may
 * use a stream. Arrays are contiguous. T steps, N rows (the batch), I input size, L layers, D
 * directions (2 if bidirectional), H hidden size, S the size of h (H, or that of a projection). */
#ifndef TIDEGATE_TIDEGATE_C_H_
#define TIDEGATE_TIDEGATE_C_H_

#include <stddef.h>
#include <stdint.h>

#include "tidegate/export.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tidegate_status {
  TIDEGATE_OK = 0,
  TIDEGATE_INVALID_ARGUMENT = 1, /* a wrong argument, or a defective file */
  TIDEGATE_SYSTEM_ERROR = 2,     /* the file could not be opened or read */
  TIDEGATE_OUT_OF_MEMORY = 3,
  TIDEGATE_INTERNAL_ERROR = 4 /* any other error: a bug of the library */
} tidegate_status;

typedef struct tidegate_model tidegate_model;
typedef struct tidegate_stream tidegate_stream;
typedef struct tidegate_linear tidegate_linear;

/* For example "1.2.3". */
TIDEGATE_EXPORT const char* tidegate_version(void);
/* "bfloat16" or "bfloat16-dot", whichever is faster on the instruction set in force. */
TIDEGATE_EXPORT const char* tidegate_fastest_bfloat16(void);

/* The reason of the calling thread's last failed call; "" if none has failed. Valid until the
 * thread's next failed call. */
TIDEGATE_EXPORT const char* tidegate_last_error(void);

/* ---- Models ----
 * Returned in *model, to be freed with tidegate_model_free(). A stream keeps its model alive, so
 * the model may be freed first. */

/* From a safetensors file of layers (written by Python's tidegate.save, or by C++). `layer` is the
 * name of an LSTM, GRU or MGU in it; null: the only one. */
TIDEGATE_EXPORT tidegate_status tidegate_model_load(const char* path, const char* layer,
                                                    tidegate_model** model);

/* From the bytes of such a file, which are not needed after the call. */
TIDEGATE_EXPORT tidegate_status tidegate_model_load_memory(const void* data, size_t size,
                                                           const char* layer,
                                                           tidegate_model** model);

/* The same with a low precision, "bfloat16", "bfloat16-dot" or "int8" (tidegate/precision.h):
 * layers of float32 are rounded to it, and those that the file has in another low precision are
 * refused (but "bfloat16" and "bfloat16-dot" have the same parameters). Null: the precision that
 * the layer has in the file, as without this argument. */
TIDEGATE_EXPORT tidegate_status tidegate_model_load_as(const char* path, const char* layer,
                                                       const char* precision,
                                                       tidegate_model** model);
TIDEGATE_EXPORT tidegate_status tidegate_model_load_memory_as(const void* data, size_t size,
                                                              const char* layer,
                                                              const char* precision,
                                                              tidegate_model** model);

typedef struct tidegate_parameter {
  const char* name;  /* PyTorch's name: "weight_ih_l0", "bias_hh_l1_reverse", ... */
  const float* data; /* row-major; copied */
  size_t count;      /* number of elements */
} tidegate_parameter;

/* From parameters in memory: exactly those that the options require, in any order. `options` is the
 * description of a layer as in a file, for example
 * {"kind": "LSTM", "input_size": 128, "hidden_size": 64}. With "precision": "int8", for example,
 * the parameters are rounded to that precision. */
TIDEGATE_EXPORT tidegate_status tidegate_model_create(const char* options,
                                                      const tidegate_parameter* parameters,
                                                      size_t parameter_count,
                                                      tidegate_model** model);

TIDEGATE_EXPORT void tidegate_model_free(tidegate_model* model);

/* Sizes; 0 for a null handle. */
TIDEGATE_EXPORT int64_t tidegate_model_input_size(const tidegate_model* model);     /* I */
TIDEGATE_EXPORT int64_t tidegate_model_hidden_size(const tidegate_model* model);    /* H */
TIDEGATE_EXPORT int64_t tidegate_model_state_size(const tidegate_model* model);     /* S */
TIDEGATE_EXPORT int64_t tidegate_model_output_size(const tidegate_model* model);    /* D * S */
TIDEGATE_EXPORT int64_t tidegate_model_num_layers(const tidegate_model* model);     /* L */
TIDEGATE_EXPORT int64_t tidegate_model_num_directions(const tidegate_model* model); /* D */
TIDEGATE_EXPORT int tidegate_model_has_cell_state(const tidegate_model* model);     /* an LSTM: 1 */

/* "float32", "bfloat16", "bfloat16-dot" or "int8"; "" for a null handle. */
TIDEGATE_EXPORT const char* tidegate_model_precision(const tidegate_model* model);

/* Copies a float32 tensor from a file, or from its bytes: a parameter of a layer, or an array that
 * the file contains besides its layers. Row-major; it must have `count` elements. */
TIDEGATE_EXPORT tidegate_status tidegate_tensor_read(const char* path, const char* tensor,
                                                     float* values, size_t count);
TIDEGATE_EXPORT tidegate_status tidegate_tensor_read_memory(const void* data, size_t size,
                                                            const char* tensor, float* values,
                                                            size_t count);

/* Runs whole sequences. Outputs may not overlap other arrays, except that h_n may be h_0, and c_n
 * may be c_0. */
typedef struct tidegate_run {
  int64_t steps;          /* T */
  int64_t batch;          /* N */
  const float* x;         /* (T, N, I) */
  const int64_t* lengths; /* (N,) valid steps of each row, 0 to T; null: all */
  const float* h_0;       /* (L*D, N, S); null: zeros */
  const float* c_0;       /* (L*D, N, H), LSTM; null: zeros */
  float* y;               /* (T, N, D*S) */
  float* h_n;             /* (L*D, N, S); may be null */
  float* c_n;             /* (L*D, N, H), LSTM; may be null */
  int num_threads;        /* the greatest number of threads; 0 is 1 */
} tidegate_run;

TIDEGATE_EXPORT tidegate_status tidegate_model_run(const tidegate_model* model,
                                                   const tidegate_run* run);

/* ---- Streams: batches of live sequences, whose states they hold ---- */

/* Refuses bidirectional models, and models that run in reverse. The initial state is zero. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_create(const tidegate_model* model, int64_t batch,
                                                       tidegate_stream** stream);
TIDEGATE_EXPORT void tidegate_stream_free(tidegate_stream* stream);

TIDEGATE_EXPORT int64_t tidegate_stream_batch(const tidegate_stream* stream);

/* One step: x (N, I) -> y (N, S), which may not overlap. Uses one thread; allocates nothing, takes
 * no lock, makes no system call, and fails only for null pointers. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_step(tidegate_stream* stream, const float* x,
                                                     float* y);

/* One step of rows[0] ... rows[count - 1] alone, in any order: x (count, I) -> y (count, S). Also
 * fails for a row that does not exist or is given twice. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_step_rows(tidegate_stream* stream,
                                                          const int64_t* rows, int64_t count,
                                                          const float* x, float* y);

/* Several steps: x (T, N, I) -> y (T, N, S), which may not overlap; the same bits as step by step.
 * num_threads: the greatest number of threads; 0 is 1. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_run(tidegate_stream* stream, int64_t steps,
                                                    const float* x, float* y, int num_threads);

/* Sets the state of a row to zero, or that of all rows if row is -1. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_reset(tidegate_stream* stream, int64_t row);

/* Adds rows at the end, with a state of zero, or removes rows at the end; the other rows keep their
 * state. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_resize(tidegate_stream* stream, int64_t batch);

/* Copies h (L, N, S) and c (L, N, H). Get: a null pointer is skipped. Set: a null pointer means
 * zeros. Only an LSTM has c: for other cells it must be null. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_get_state(tidegate_stream* stream, float* h,
                                                          float* c);
TIDEGATE_EXPORT tidegate_status tidegate_stream_set_state(tidegate_stream* stream, const float* h,
                                                          const float* c);

/* ---- Linear layers: y = x W^T + b, such as the head that turns h into logits ---- */

/* From a safetensors file of layers, or from its bytes, as for models. `layer` is the name of a
 * Linear in it; null: the only one. Returned in *linear, to be freed with tidegate_linear_free().
 */
TIDEGATE_EXPORT tidegate_status tidegate_linear_load(const char* path, const char* layer,
                                                     tidegate_linear** linear);
TIDEGATE_EXPORT tidegate_status tidegate_linear_load_memory(const void* data, size_t size,
                                                            const char* layer,
                                                            tidegate_linear** linear);
/* The same with a low precision, or null, as for models. */
TIDEGATE_EXPORT tidegate_status tidegate_linear_load_as(const char* path, const char* layer,
                                                        const char* precision,
                                                        tidegate_linear** linear);
TIDEGATE_EXPORT tidegate_status tidegate_linear_load_memory_as(const void* data, size_t size,
                                                               const char* layer,
                                                               const char* precision,
                                                               tidegate_linear** linear);
TIDEGATE_EXPORT void tidegate_linear_free(tidegate_linear* linear);

/* Sizes; 0 for a null handle. */
TIDEGATE_EXPORT int64_t tidegate_linear_in_features(const tidegate_linear* linear);
TIDEGATE_EXPORT int64_t tidegate_linear_out_features(const tidegate_linear* linear);

/* "float32", "bfloat16", "bfloat16-dot" or "int8"; "" for a null handle. */
TIDEGATE_EXPORT const char* tidegate_linear_precision(const tidegate_linear* linear);

/* x (rows, in_features) -> y (rows, out_features), which may not overlap. num_threads: the greatest
 * number of threads; 0 is 1. With one thread it allocates nothing, except in low precision, and
 * makes no system call. */
TIDEGATE_EXPORT tidegate_status tidegate_linear_run(const tidegate_linear* linear, int64_t rows,
                                                    const float* x, float* y, int num_threads);

#ifdef __cplusplus
}
#endif

#endif /* TIDEGATE_TIDEGATE_C_H_ */
