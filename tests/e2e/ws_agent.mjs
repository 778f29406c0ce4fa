// WebSocket clients of the library `ws` that a test drives: one JSON command a line in, one JSON event
// a line out. `ws_agent.py` is the same with the Python library `websockets`.
//
//   {"do":"open","id":"a","url":…,"headers":{…},"protocols":[…],"quiet":true,"pongs":false}
//   {"do":"send","id":"a","text":…}   {"do":"close","id":"a","code":1000,"reason":…}
//   {"do":"pause","id":"a"}   {"do":"resume","id":"a"}   {"do":"ping","id":"a"}
//   {"do":"counts"}   {"do":"save","folder":…}
//
// What a quiet client receives is not told but kept, and saved as FOLDER/ID, a message a line.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import WebSocket from "ws";

const say = (on, more = {}) => process.stdout.write(JSON.stringify({ on, ...more }) + "\n");
const clients = new Map();

const commands = {
  open({ id, url, headers = {}, protocols = [], quiet = false, pongs = true, deflate = false }) {
    const ws = new WebSocket(url, protocols, {
      headers, autoPong: pongs, perMessageDeflate: deflate, maxPayload: 64 << 20,
    });
    const kept = [];
    clients.set(id, { ws, kept });
    ws.on("open", () => say("open", { id, protocol: ws.protocol || null }));
    ws.on("unexpected-response", (request, response) => {
      let body = "";
      response.on("data", (data) => (body += data));
      response.on("end", () =>
        say("refused", { id, status: response.statusCode, headers: response.headers, body }));
      request.on("error", () => {});
    });
    ws.on("message", (data, isBinary) => {
      if (quiet) kept.push(data);
      else say("message", { id, text: isBinary ? null : data.toString() });
    });
    ws.on("pong", (data) => say("pong", { id, text: data.toString() }));
    ws.on("close", (code, reason) => say("close", { id, code, reason: reason.toString() }));
    ws.on("error", () => {});
  },
  send: ({ id, text }) => clients.get(id).ws.send(text),
  close: ({ id, code = 1000, reason = "" }) => clients.get(id).ws.close(code, reason),
  pause: ({ id }) => clients.get(id).ws.pause(),
  resume: ({ id }) => clients.get(id).ws.resume(),
  ping: ({ id, text = "" }) => clients.get(id).ws.ping(text),
  counts: () =>
    say("counts", { counts: Object.fromEntries([...clients].map(([id, c]) => [id, c.kept.length])) }),
  save({ folder }) {
    const newline = Buffer.from("\n");
    for (const [id, { kept }] of clients)
      writeFileSync(join(folder, id), Buffer.concat(kept.flatMap((data) => [data, newline])));
    say("saved");
  },
};

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const command = JSON.parse(line);
    commands[command.do](command);
  })
  .on("close", () => process.exit(0));
say("ready");
