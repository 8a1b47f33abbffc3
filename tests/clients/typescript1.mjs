// The official TypeScript client, version 1: node typescript1.mjs (stdio PROGRAM ARGUMENT... | http URL)

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { ElicitRequestSchema } from "@modelcontextprotocol/sdk/types.js";
import { answerOf, run } from "./scenarios.mjs";

const [transport, target, ...args] = process.argv.slice(2);

await run(async () => {
	const client = new Client({ name: "typescript1", version: "1" }, { capabilities: { elicitation: {} } });
	const connected = {
		questions: 0,
		call: (name, args, options) => client.callTool({ name, arguments: args }, undefined, options),
		close: () => client.close(),
	};
	client.setRequestHandler(ElicitRequestSchema, ({ params }) => {
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
