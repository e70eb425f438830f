/* The C API: models that run and stream float32, for C and for languages that can call C. A thin
 * layer over the C++ API, which says more of what things mean. No exception leaves it. Files of
 * float64 are refused (Python's layer.astype(numpy.float32) converts them): a model that is used
 * from here is one to be run, while float64 is for checking, which C++ and Python can do.
 *
 * Functions return a status; tidegate_last_error() says in words what was wrong, and nothing has
 * been written then, but for the values of a read that the system ends half way. Handles are
 * opaque; a null handle is an error, except to tidegate_..._free(), which ignores it. Any number of
 * threads may use one model, or one linear layer, at once; a stream serves one thread at a time.
 * Arrays are contiguous. T steps, N rows (the batch), I input size, L layers, D directions (2 if
 * bidirectional), H hidden size, S the size of h (H, or that of a projection). */
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
  TIDEGATE_INVALID_ARGUMENT = 1, /* an argument, or a file that is not as it should be */
  TIDEGATE_SYSTEM_ERROR = 2,     /* the file could not be opened or read */
  TIDEGATE_OUT_OF_MEMORY = 3,
  TIDEGATE_INTERNAL_ERROR = 4 /* anything else: a mistake of the library */
} tidegate_status;

typedef struct tidegate_model tidegate_model;
typedef struct tidegate_stream tidegate_stream;
typedef struct tidegate_linear tidegate_linear;

/* As "1.2.3". */
TIDEGATE_EXPORT const char* tidegate_version(void);

/* Why the calling thread's last call that failed did so; "" if none has. Valid until its next. */
TIDEGATE_EXPORT const char* tidegate_last_error(void);

/* ---- Models ----
 * Each returned in *model, to be freed with tidegate_model_free(). Streams hold on to their model:
 * it may be freed before them. */

/* From a safetensors file that holds layers (written by Python's tidegate.save, or by C++). `layer`
 * is the name of an LSTM, GRU or MGU in it; null: the only one. */
TIDEGATE_EXPORT tidegate_status tidegate_model_load(const char* path, const char* layer,
                                                    tidegate_model** model);

/* The same from such a file's bytes, which are not needed afterwards. */
TIDEGATE_EXPORT tidegate_status tidegate_model_load_memory(const void* data, size_t size,
                                                           const char* layer,
                                                           tidegate_model** model);

typedef struct tidegate_parameter {
  const char* name;  /* as PyTorch's: "weight_ih_l0", "bias_hh_l1_reverse", ... */
  const float* data; /* row-major; copied */
  size_t count;      /* of elements */
} tidegate_parameter;

/* From parameters in memory: exactly those of the options, in any order. `options` is what a file
 * says of a layer, for example {"kind": "LSTM", "input_size": 128, "hidden_size": 64}. */
TIDEGATE_EXPORT tidegate_status tidegate_model_create(const char* options,
                                                      const tidegate_parameter* parameters,
                                                      size_t parameter_count,
                                                      tidegate_model** model);

TIDEGATE_EXPORT void tidegate_model_free(tidegate_model* model);

/* Sizes; 0 of a null handle. */
TIDEGATE_EXPORT int64_t tidegate_model_input_size(const tidegate_model* model);     /* I */
TIDEGATE_EXPORT int64_t tidegate_model_hidden_size(const tidegate_model* model);    /* H */
TIDEGATE_EXPORT int64_t tidegate_model_state_size(const tidegate_model* model);     /* S */
TIDEGATE_EXPORT int64_t tidegate_model_output_size(const tidegate_model* model);    /* D * S */
TIDEGATE_EXPORT int64_t tidegate_model_num_layers(const tidegate_model* model);     /* L */
TIDEGATE_EXPORT int64_t tidegate_model_num_directions(const tidegate_model* model); /* D */
TIDEGATE_EXPORT int tidegate_model_has_cell_state(const tidegate_model* model);     /* an LSTM: 1 */

/* What a file holds beside its layers, and their parameters: copies a float32 tensor, row-major,
 * which must have `count` elements. From a file, or from its bytes. */
TIDEGATE_EXPORT tidegate_status tidegate_tensor_read(const char* path, const char* tensor,
                                                     float* values, size_t count);
TIDEGATE_EXPORT tidegate_status tidegate_tensor_read_memory(const void* data, size_t size,
                                                            const char* tensor, float* values,
                                                            size_t count);

/* Runs whole sequences. The arrays that are written may not overlap others, except that h_n may be
 * h_0, and c_n c_0. */
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
  int num_threads;        /* the most threads to use; 0 is 1 */
} tidegate_run;

TIDEGATE_EXPORT tidegate_status tidegate_model_run(const tidegate_model* model,
                                                   const tidegate_run* run);

/* ---- Streams: a batch of live sequences whose states stay inside ---- */

/* Refuses models of two directions, or that run in reverse. The state is zero. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_create(const tidegate_model* model, int64_t batch,
                                                       tidegate_stream** stream);
TIDEGATE_EXPORT void tidegate_stream_free(tidegate_stream* stream);

TIDEGATE_EXPORT int64_t tidegate_stream_batch(const tidegate_stream* stream);

/* One step: x (N, I) -> y (N, S), which may not overlap. One thread; allocates nothing, takes no
 * lock, makes no system call, and fails for null pointers only. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_step(tidegate_stream* stream, const float* x,
                                                     float* y);

/* The same for rows[0] ... rows[count - 1] alone, in any order: x (count, I) -> y (count, S). Fails
 * for a row that is not there or is given twice as well. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_step_rows(tidegate_stream* stream,
                                                          const int64_t* rows, int64_t count,
                                                          const float* x, float* y);

/* A chunk: x (T, N, I) -> y (T, N, S), which may not overlap; the same bits as step by step.
 * num_threads: the most threads to use; 0 is 1. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_run(tidegate_stream* stream, int64_t steps,
                                                    const float* x, float* y, int num_threads);

/* The state of one row becomes zero; of all rows for row = -1. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_reset(tidegate_stream* stream, int64_t row);

/* Rows at the end come, zero, or go; those that stay keep their state. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_resize(tidegate_stream* stream, int64_t batch);

/* h (L, N, S) and c (L, N, H), copied. Getting: null is not copied. Setting: null is zeros. Only
 * an LSTM has c: of other cells it must be null. */
TIDEGATE_EXPORT tidegate_status tidegate_stream_get_state(tidegate_stream* stream, float* h,
                                                          float* c);
TIDEGATE_EXPORT tidegate_status tidegate_stream_set_state(tidegate_stream* stream, const float* h,
                                                          const float* c);

/* ---- Linear layers: y = x W^T + b, such as the head that turns h into logits ---- */

/* From a safetensors file that holds layers, or from its bytes, as models are. `layer` is the name
 * of a Linear in it; null: the only one. Returned in *linear, to be freed with
 * tidegate_linear_free(). */
TIDEGATE_EXPORT tidegate_status tidegate_linear_load(const char* path, const char* layer,
                                                     tidegate_linear** linear);
TIDEGATE_EXPORT tidegate_status tidegate_linear_load_memory(const void* data, size_t size,
                                                            const char* layer,
                                                            tidegate_linear** linear);
TIDEGATE_EXPORT void tidegate_linear_free(tidegate_linear* linear);

/* Sizes; 0 of a null handle. */
TIDEGATE_EXPORT int64_t tidegate_linear_in_features(const tidegate_linear* linear);
TIDEGATE_EXPORT int64_t tidegate_linear_out_features(const tidegate_linear* linear);

/* x (rows, in_features) -> y (rows, out_features), which may not overlap. num_threads: the greatest
 * number of threads; 0 is 1. With one thread it allocates nothing and makes no system call. */
TIDEGATE_EXPORT tidegate_status tidegate_linear_run(const tidegate_linear* linear, int64_t rows,
                                                    const float* x, float* y, int num_threads);

#ifdef __cplusplus
}
#endif

#endif /* TIDEGATE_TIDEGATE_C_H_ */
