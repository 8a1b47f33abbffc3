// The table of what each client got. The guide has it between two marks.

export const SCENARIOS = ["quick", "slow", "question", "longer", "cancel", "limit", "killed"];
const COLUMNS = ["client", "protocol", "transport", ...SCENARIOS];
const BEGIN = "<!-- results of make clients: begin -->\n";
const END = "<!-- results of make clients: end -->\n";

export function table(runs) {
	const rows = runs.map(({ client, protocol, transport, got }) => [client, protocol, transport, ...SCENARIOS.map((scenario) => cell(got[scenario]))]);
	const lines = [COLUMNS, COLUMNS.map(() => "---"), ...rows];
	return lines.map((row) => `| ${row.join(" | ")} |\n`).join("");
}

// The names of tools and methods are code.
function cell(got = "NOT PLAYED") {
	return got.replace(/\btasks?[_/]\w+/g, "`$&`").replaceAll("|", "/").replaceAll("\n", " ");
}

// Returns the rows of the table in a text, by client and transport.
export function rowsOf(text) {
	const lines = text.split("\n").filter((line) => line.startsWith("| ") && !line.startsWith("| ---"));
	const rows = lines.map((line) => line.split("|").slice(1, -1).map((cell) => cell.trim()));
	const ours = rows.filter((row) => row.length === COLUMNS.length && row[0] !== COLUMNS[0]);
	return new Map(ours.map(([client, protocol, transport, ...cells]) => [`${client}, ${protocol}, ${transport}`, cells]));
}

// Describes how two tables differ.
export function difference(expected, found) {
	const differences = [];
	for (const run of new Set([...expected.keys(), ...found.keys()])) {
		for (const [index, scenario] of SCENARIOS.entries()) {
			const [wanted, got] = [expected.get(run)?.[index] ?? "nothing", found.get(run)?.[index] ?? "nothing"];
			if (wanted !== got) differences.push(`  ${run}: ${scenario}: the guide says ${wanted}; the client got ${got}`);
		}
	}
	return differences;
}

// Returns a page with another table.
export function replaced(page, found) {
	const [begin, end] = [page.indexOf(BEGIN), page.indexOf(END)];
	if (begin < 0 || end < begin) throw new Error("the page has no marks of the table");
	return `${page.slice(0, begin + BEGIN.length)}\n${found}\n${page.slice(end)}`;
}
