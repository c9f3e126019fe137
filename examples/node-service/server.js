// A small web service on node:http; `ms` and `mime` come from the npm registry.
const http = require("node:http");
const mime = require("mime");
const ms = require("ms");

const port = Number(process.env.PORT);
const server = http.createServer((request, response) => {
  response.setHeader("Content-Type", mime.getType("json"));
  response.end(JSON.stringify({ service: "node", version: process.version, uptime: ms(Math.round(process.uptime() * 1000)) }) + "\n");
});

process.on("SIGINT", () => process.exit(0));
server.listen(port, () => console.log(`node-service listens on ${port}`));
