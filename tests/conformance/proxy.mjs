// A round-robin HTTP proxy: it sends each request to the next target, also requests of the same connection. It streams bodies in
// both directions, so the client receives each event of an event stream at once.

import { createServer, request } from "node:http";

// Starts the proxy on a free port of 127.0.0.1. Returns its URL, how many requests each target received, and `close`.
export async function roundRobin(targets) {
	const counts = targets.map(() => 0);
	let turn = 0;
	const server = createServer((incoming, outgoing) => {
		const index = turn;
		turn = (turn + 1) % targets.length;
		counts[index] += 1;
		forward(targets[index], incoming, outgoing);
	});
	await new Promise((resolve, reject) => {
		server.once("error", reject);
		server.listen(0, "127.0.0.1", resolve);
	});
	return {
		url: `http://127.0.0.1:${server.address().port}${new URL(targets[0]).pathname}`,
		counts,
		close: () => {
			server.close();
			server.closeAllConnections();
		},
	};
}

function forward(target, incoming, outgoing) {
	const { hostname, port } = new URL(target);
	const { method, url: path, headers } = incoming;
	// Each request uses a new connection, because the target may have closed an idle one.
	const forwarded = request({ hostname, port, method, path, headers, agent: false });
	forwarded.on("response", (response) => {
		outgoing.writeHead(response.statusCode, response.headers);
		outgoing.flushHeaders();
		response.on("error", () => outgoing.destroy());
		response.pipe(outgoing);
	});
	forwarded.on("error", (error) => {
		if (outgoing.headersSent) return outgoing.destroy();
		outgoing.writeHead(502, { "content-type": "text/plain" });
		outgoing.end(`proxy: ${target}: ${error.message}\n`);
	});
	// If the client disconnects, the proxy disconnects from the target.
	outgoing.on("close", () => forwarded.destroy());
	incoming.pipe(forwarded);
}
