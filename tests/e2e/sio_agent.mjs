// A Socket.IO client that a test drives: one JSON command a line in, one JSON event a line out.
//
//   {"do":"open","url":…,"options":{…}}   {"do":"emit","args":["subscribe",{…}],"ack":true}
//   {"do":"disconnect"}   {"do":"drop"}   {"do":"auth","auth":{…}}   {"do":"open2","path":"/admin"}
//
// `drop` cuts the transport as a lost network would. Everything that the official client tells its
// application comes out, in the order it was told.

import { io } from "socket.io-client";
import { createInterface } from "node:readline";

const say = (on, more = {}) => process.stdout.write(JSON.stringify({ on, ...more }) + "\n");
let socket;
let auth;

function plain(value) {
  if (Buffer.isBuffer(value)) return { bytes: [...value] };
  if (value instanceof ArrayBuffer) return { bytes: [...new Uint8Array(value)] };
  return value;
}

function listen(s, name) {
  s.on("connect", () =>
    say("connect", { name, id: s.id, recovered: s.recovered, transport: s.io.engine.transport.name }));
  s.on("disconnect", (reason, details) =>
    say("disconnect", { name, reason, code: details?.context?.code, active: s.active }));
  s.on("connect_error", (error) =>
    say("connect_error", {
      name, message: error.message, data: error.data, active: s.active,
      status: error.context?.status ?? error.description?.status,
    }));
  s.on("message", (envelope, offset) => say("message", { name, envelope, offset }));
  s.onAny((event, ...args) => {
    if (event !== "message") say("event", { name, event, args: args.map(plain) });
  });
}

const commands = {
  open({ url, options = {} }) {
    auth = options.auth;
    const withAuth = auth === undefined ? options : { ...options, auth: (give) => give(auth) };
    socket = io(url, { reconnectionDelay: 50, reconnectionDelayMax: 200, ...withAuth });
    listen(socket, "/");
    socket.io.on("reconnect_attempt", (attempt) => say("reconnect_attempt", { attempt }));
    socket.io.on("open", () => {
      socket.io.engine.on("upgrade", (transport) => say("upgrade", { transport: transport.name }));
      socket.io.engine.on("upgradeError", (error) => say("upgrade_error", { message: error.message }));
    });
  },
  open2: ({ path }) => listen(socket.io.socket(path, {}), path),
  auth: (command) => { auth = command.auth; },
  emit({ args, ack }) {
    const values = args.map((arg) => (arg?.bytes ? Buffer.from(arg.bytes) : arg));
    if (ack === undefined) socket.emit(...values);
    else socket.emit(...values, (...answer) => say("ack", { ack, args: answer.map(plain) }));
  },
  disconnect: () => socket.disconnect(),
  connect: () => socket.connect(),
  drop: () => {
    const transport = socket.io.engine.transport;
    if (transport.name === "websocket") transport.ws._socket?.destroy();
    else socket.io.engine.close();
  },
};

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const command = JSON.parse(line);
    commands[command.do](command);
  })
  .on("close", () => process.exit(0));
say("ready");
