// What the JavaScript implementation of negentropy v1 says in given dialogues. Reads a list of scenarios from standard
// input, writes a list of what both of its ends say: first the initiator's first message, then its answer to each of
// `messages` by the end that hears it, with the names that the initiator learns.
import { readFileSync } from "node:fs";
import { webcrypto } from "node:crypto";

// It looks for the hash of a browser where there is a window; the other way needs CommonJS.
globalThis.crypto ??= webcrypto;
globalThis.window ??= globalThis;

const path = new URL("node_modules/@welshman/net/dist/net/src/negentropy.js", import.meta.url);
const published = readFileSync(path, "utf8");

// Its varints are shifted in 32 bits, which is enough for seconds. These three expressions, put in for its own, hold
// milliseconds and change nothing below 2^31.
const wider = [
  ["res = (res << 7) | (byte & 127);", "res = res * 128 + (byte & 127);"],
  ["o.push(n & 127);", "o.push(n % 128);"],
  ["n >>>= 7;", "n = Math.floor(n / 128);"],
].reduce((source, [theirs, ours]) => {
  const parts = source.split(theirs);
  if (parts.length !== 2) throw Error(`not there once: ${theirs}`);
  return parts.join(ours);
}, published);

const load = (source) => import(`data:text/javascript,${encodeURIComponent(source)}`);
const modules = { published: await load(published), wider: await load(wider) };

const end = ({ Negentropy, NegentropyStorageVector }, elements, frameBytes) => {
  const storage = new NegentropyStorageVector();
  for (const [time, name] of elements) storage.insert(time, name);
  storage.seal();
  return new Negentropy(storage, frameBytes);
};

const answers = [];
for (const { varints, frame_bytes, initiator, responder, messages } of JSON.parse(readFileSync(0, "utf8"))) {
  const ends = [initiator, responder].map((elements) => end(modules[varints], elements, frame_bytes));
  const said = [{ message: await ends[0].initiate(), have: [], need: [] }];
  for (const [place, heard] of messages.entries()) {
    const [message, have, need] = await ends[(place + 1) % 2].reconcile(heard);
    said.push({ message, have: have.sort(), need: need.sort() });
  }
  answers.push(said);
}
process.stdout.write(JSON.stringify(answers));
