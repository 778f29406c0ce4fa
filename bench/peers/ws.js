// Node's `ws`, the plain way: a set of sockets for each channel, each event encoded once.
// Arguments: port, path of the feed socket.
const net = require('node:net');
const readline = require('node:readline');
const { WebSocketServer } = require('ws');

const [port, feed] = process.argv.slice(2);
const members = new Map();

const server = new WebSocketServer({ port: Number(port), host: '127.0.0.1', backlog: 4096 });
server.on('connection', (socket) => {
  const mine = new Set();
  socket.on('message', (text) => {
    const { channels } = JSON.parse(text);
    for (const channel of channels) {
      if (!members.has(channel)) members.set(channel, new Set());
      members.get(channel).add(socket);
      mine.add(channel);
    }
    const data = { channels, denied: [] };
    socket.send(JSON.stringify({ type: 'subscription_confirmed', data, timestamp: Date.now() }));
  });
  socket.on('close', () => { for (const channel of mine) members.get(channel).delete(socket); });
  socket.on('error', () => {});
});

net.createServer((producer) => {
  readline.createInterface({ input: producer }).on('line', (line) => {
    const event = JSON.parse(line);
    const message = Buffer.from(JSON.stringify({ ...event, timestamp: Date.now() }));
    for (const socket of members.get(event.channel) ?? []) socket.send(message, { binary: false });
  });
}).listen(feed);
