// A round-robin HTTP proxy: each request goes to the next target, whichever connection it came on. Bodies are
// streamed both ways, so an event stream passes event by event.

import { createServer, request } from "node:http";

// Starts the proxy on a free port of 127.0.0.1. Answers its URL, how many requests each target got, and `close`.
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
	// One connection a request: none that is kept can turn out to be closed.
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
	// A client that goes away is gone for the target, too.
	outgoing.on("close", () => forwarded.destroy());
	incoming.pipe(forwarded);
}
