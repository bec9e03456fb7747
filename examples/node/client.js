// Classifies a text with magika from Node, with the protocol loaded from protos/.
//
//     cd examples/node && npm install
//     make serve                                  # in another terminal
//     node client.js [HOST:PORT]

const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

// To run this file from another folder, set ROOT to the repository.
const ROOT = process.env.ROOT ?? path.join(__dirname, "../..");
const LABELS = path.join(ROOT, "models/magika/config.min.json"); // fetched by `make serve`
const TEXT = Buffer.from('import os\n\n\ndef main():\n    print(os.environ["HOME"])\n');

// magika reads the first 1024 bytes and the last; 256 stands for "none".
function features(text) {
  const row = new Int32Array(2048).fill(256);
  row.set(text.subarray(0, 1024), 0);
  const last = text.subarray(Math.max(0, text.length - 1024));
  row.set(last, 2048 - last.length);
  return Buffer.from(row.buffer);
}

const definition = loader.loadSync("open_inference.proto", { includeDirs: [path.join(ROOT, "protos")], keepCase: true, longs: Number });
const { inference } = grpc.loadPackageDefinition(definition);
const client = new inference.GRPCInferenceService(process.argv[2] ?? "127.0.0.1:8001", grpc.credentials.createInsecure());

const request = {
  model_name: "magika",
  inputs: [{ name: "bytes", datatype: "INT32", shape: [1, 2048] }],
  raw_input_contents: [features(TEXT)],
};
client.ModelInfer(request, { deadline: Date.now() + 5000 }, (error, answer) => {
  client.close();
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exitCode = 1;
    return;
  }
  const raw = answer.raw_output_contents[0];
  const scores = Array.from({ length: raw.length / 4 }, (_, i) => raw.readFloatLE(4 * i));
  const best = scores.indexOf(Math.max(...scores));
  const label = JSON.parse(fs.readFileSync(LABELS, "utf8")).target_labels_space[best];
  console.log(`${label}, with a score of ${scores[best].toFixed(3)}`);
});
