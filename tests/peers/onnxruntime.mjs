// Puts in place what Supabase's runtime has built in (ext/ai/js/onnxruntime/onnx.js of supabase/edge-runtime): the same
// interface, over WebAssembly instead of a native library.
import { env, InferenceSession, Tensor } from "onnxruntime-web/wasm";

env.wasm.numThreads = 1;
globalThis[Symbol.for("onnxruntime")] = {
  Tensor,
  env: {},
  InferenceSession: { create: (bytes) => InferenceSession.create(bytes) },
};
