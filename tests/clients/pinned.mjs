// The versions of the clients, from the files that pin them.

import { readFile } from "node:fs/promises";

export async function pinned() {
	const read = (path) => readFile(new URL(path, import.meta.url), "utf8");
	const { dependencies } = JSON.parse(await read("package.json"));
	const requirements = await read("requirements.txt");
	const locked = await read("../../Cargo.lock");
	const required = (name) => requirements.match(new RegExp(`^${name}==(.+)$`, "m"))[1];
	return {
		typescript1: dependencies["@modelcontextprotocol/sdk"],
		typescript2: dependencies["@modelcontextprotocol/client"],
		python: required("mcp"),
		fastmcp: required("fastmcp"),
		rmcp: locked.match(/name = "rmcp"\nversion = "(.+)"/)[1],
	};
}
