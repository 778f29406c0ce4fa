// Many official clients in one process, each of which checks by itself that its symbol's events come
// complete and in order while it moves from polling to WebSocket.
//
//   {"do":"open","url":…,"token":…,"clients":200,"symbols":20}   {"do":"expect","last":{"S0":4700,…}}

import { io } from "socket.io-client";
import { createInterface } from "node:readline";

const say = (on, more = {}) => process.stdout.write(JSON.stringify({ on, ...more }) + "\n");
const clients = [];
let upgraded = 0;
let told = 0; // times a client was told that it was too slow for all events
let faults = [];

function join(url, token, index, symbol) {
  const socket = io(url, { auth: { token }, forceNew: true, reconnection: false });
  const client = { last: undefined, seq: undefined, symbol };
  clients.push(client);
  const fault = (text) => faults.length < 20 && faults.push(`client ${index}: ${text}`);
  socket.io.on("open", () => {
    socket.io.engine.on("upgrade", () => {
      if (++upgraded === total) say("upgraded");
    });
    socket.io.engine.on("upgradeError", (error) => fault(`upgrade: ${error.message}`));
  });
  socket.on("connect", () => socket.emit("subscribe", { channels: [`market_data:${symbol}`] }));
  socket.on("message", (m) => {
    if (m.type === "skipped") {
      told += 1;
      client.seq = m.data.toSeq;
    }
    if (m.type !== "market_data_update" || m.snapshot) return;
    if (client.seq !== undefined && m.seq !== client.seq + 1)
      fault(`seq ${m.seq} after ${client.seq} by ${socket.io.engine.transport.name}`);
    client.seq = m.seq;
    client.last = m.data.price;
  });
  socket.on("disconnect", (reason) => fault(`disconnect: ${reason}`));
  socket.on("connect_error", (error) => fault(`connect_error: ${error.message}`));
}

let total = 0;
const commands = {
  open({ url, token, clients: count, symbols }) {
    total = count;
    // Spread over a second, so that upgrades begin and end at different moments of the flow.
    for (let i = 0; i < count; i++) setTimeout(() => join(url, token, i, `S${i % symbols}`), (i * 1000) / count);
  },
  async expect({ last }) {
    const deadline = Date.now() + 10000;
    while (clients.some((c) => c.last !== last[c.symbol]) && Date.now() < deadline)
      await new Promise((resolve) => setTimeout(resolve, 20));
    const late = clients.filter((c) => c.last !== last[c.symbol]).length;
    if (late) faults.push(`${late} clients did not get the last event`);
    say("result", { faults, upgraded, told });
  },
};

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const command = JSON.parse(line);
    commands[command.do](command);
  })
  .on("close", () => process.exit(0));
say("ready");
