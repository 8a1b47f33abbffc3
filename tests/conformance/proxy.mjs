// A round-robin HTTP proxy: it sends each request to the next target, also requests of the same connection. If a target does not
// accept the connection, the request goes to the next one. The proxy streams bodies in both directions, so the client receives each
// event of an event stream at once.

import { createServer, request } from "node:http";

// Starts the proxy on a free port of 127.0.0.1. The targets may change while it runs. Returns its URL, how many requests each target
// received, and `close`.
export async function roundRobin(targets) {
	const proxy = { targets, counts: targets.map(() => 0), turn: 0 };
	const server = createServer((incoming, outgoing) => forward(proxy, incoming, outgoing, targets.length));
	await new Promise((resolve, reject) => {
		server.once("error", reject);
		server.listen(0, "127.0.0.1", resolve);
	});
	return {
		url: `http://127.0.0.1:${server.address().port}${new URL(targets[0]).pathname}`,
		counts: proxy.counts,
		close: () => {
			server.close();
			server.closeAllConnections();
		},
	};
}

// Forwards a request to the next target, and to the one after it if the connection is refused.
function forward(proxy, incoming, outgoing, tries) {
	const index = proxy.turn;
	proxy.turn = (index + 1) % proxy.targets.length;
	const { hostname, port } = new URL(proxy.targets[index]);
	const { method, url: path, headers } = incoming;
	// Each request uses a new connection, because the target may have closed an idle one.
	const forwarded = request({ hostname, port, method, path, headers, agent: false });
	forwarded.on("socket", (socket) =>
		socket.once("connect", () => {
			proxy.counts[index] += 1;
			incoming.pipe(forwarded);
		}),
	);
	forwarded.on("response", (response) => {
		outgoing.writeHead(response.statusCode, response.headers);
		outgoing.flushHeaders();
		response.on("error", () => outgoing.destroy());
		response.pipe(outgoing);
	});
	forwarded.on("error", (error) => {
		if (outgoing.headersSent) return outgoing.destroy();
		if (error.code === "ECONNREFUSED" && tries > 1) return forward(proxy, incoming, outgoing, tries - 1);
		outgoing.writeHead(502, { "content-type": "text/plain" });
		outgoing.end(`proxy: ${proxy.targets[index]}: ${error.message}\n`);
	});
	// If the client disconnects, the proxy disconnects from the target.
	outgoing.on("close", () => forwarded.destroy());
}
