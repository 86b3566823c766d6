// Answers prompts greedily with llama.cpp: node answer.mjs MODEL.gguf ADAPTER.gguf|- < {"prompts", "count"} > answers
import fs from "node:fs";
import {getLlama} from "node-llama-cpp";

const [modelPath, adapter] = process.argv.slice(2);
const {prompts, count} = JSON.parse(fs.readFileSync(0));
// One thread: two beside another busy process wait for each other.
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath});
const lora = adapter === "-" ? undefined : {adapters: [{filePath: adapter, scale: 1}]};
const context = await model.createContext({contextSize: 512, lora});
const sequence = context.getSequence();
const answers = [];
for (const prompt of prompts) {
  const tokens = [];
  await sequence.clearHistory();
  for await (const token of sequence.evaluate(prompt, {temperature: 0})) {
    tokens.push(token);
    if (tokens.length === count) break;
  }
  answers.push(tokens);
}
fs.writeSync(1, JSON.stringify(answers));
process.exit(0);
