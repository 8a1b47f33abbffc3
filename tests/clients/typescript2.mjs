// The official TypeScript client, version 2: node typescript2.mjs MODE (stdio PROGRAM ARGUMENT... | http URL)
//
// MODE is "legacy", the default of the client, or "auto": the client finds out which protocol versions the server supports.

import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { answerOf, run } from "./scenarios.mjs";

const [mode, transport, target, ...args] = process.argv.slice(2);

await run(async () => {
	const options = { capabilities: { elicitation: {} }, versionNegotiation: { mode } };
	const client = new Client({ name: "typescript2", version: "1" }, options);
	const connected = {
		questions: 0,
		call: (name, args, options) => client.callTool({ name, arguments: args }, options),
		close: () => client.close(),
	};
	client.setRequestHandler("elicitation/create", ({ params }) => {
		connected.questions += 1;
		return answerOf(params.message);
	});
	await client.connect(
		transport === "stdio" ? new StdioClientTransport({ command: target, args }) : new StreamableHTTPClientTransport(new URL(target)),
	);
	// From now on the client checks structured content against the output schema.
	connected.tools = (await client.listTools()).tools.map(({ name }) => name);
	return connected;
});
