/* FREE_OF_WORK(f): `f` is exported as free_f too, which tells the pass not to meter it. */
#ifndef IPOS_WASI_FREE
#define IPOS_WASI_FREE

#ifdef __wasm__
#define FREE_OF_WORK(name) extern __typeof__(name) free_##name __attribute__((alias(#name)));
#else
#define FREE_OF_WORK(name)
#endif

#endif
