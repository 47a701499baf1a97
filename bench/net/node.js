// The servers of Node: node.js echo|http PORT
const [what, port] = [process.argv[2], Number(process.argv[3])]

if (what === 'echo') {
  require('net').createServer({ noDelay: true }, peer => {
    peer.on('data', block => peer.write(block))
    peer.on('error', () => peer.destroy())
  }).listen(port, '127.0.0.1', 511)
} else {
  require('http').createServer((request, response) => {
    response.setHeader('Content-Type', 'text/plain')
    response.end('hello\n')
  }).listen(port, '127.0.0.1', 511)
}
