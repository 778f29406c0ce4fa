// Socket.IO on Node, the usual way: rooms as channels. Arguments: port, path of the feed socket.
const http = require('node:http');
const net = require('node:net');
const readline = require('node:readline');
const { Server } = require('socket.io');

const [port, feed] = process.argv.slice(2);

const web = http.createServer();
const io = new Server(web);
io.on('connection', (socket) => {
  socket.on('subscribe', ({ channels }) => {
    socket.join(channels);
    const data = { channels, denied: [] };
    socket.emit('message', { type: 'subscription_confirmed', data, timestamp: Date.now() });
  });
});
web.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 });

net.createServer((producer) => {
  readline.createInterface({ input: producer }).on('line', (line) => {
    const event = JSON.parse(line);
    io.to(event.channel).emit('message', { ...event, timestamp: Date.now() });
  });
}).listen(feed);
