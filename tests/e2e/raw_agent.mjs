// An Engine.IO client that a test drives, for what lies below Socket.IO: one JSON command a line in,
// one JSON event a line out.
//
//   {"do":"open","url":…,"transports":[…],"path":"/socket.io/"}   {"do":"send","data":"0"}   {"do":"close"}

import { Socket } from "engine.io-client";
import { createInterface } from "node:readline";

const say = (on, more = {}) => process.stdout.write(JSON.stringify({ on, ...more }) + "\n");
let socket;

const commands = {
  open({ url, path = "/socket.io/", ...options }) {
    socket = new Socket(url, { path, ...options });
    socket.binaryType = "arraybuffer";
    socket.on("open", () => say("open", { transport: socket.transport.name }));
    socket.on("upgrade", (transport) => say("upgrade", { transport: transport.name }));
    socket.on("message", (data) =>
      say("data", typeof data === "string" ? { data } : { bytes: [...new Uint8Array(data)] }));
    socket.on("close", (reason, details) => say("close", { reason, code: details?.context?.code }));
    socket.on("error", (error) => say("error", { message: error.message, status: error.context?.status }));
  },
  send: ({ data, bytes }) => socket.send(bytes ? Buffer.from(bytes) : data),
  close: () => socket.close(),
};

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const command = JSON.parse(line);
    commands[command.do](command);
  })
  .on("close", () => process.exit(0));
say("ready");
