//! Calls on one record.

use anyhow::Result;

use crate::bench::Bench;
use crate::calls::{Round, Sets, all_three, create, get, put, swap};
use crate::contender::Contender;
use crate::format::{micros, thousands};
use crate::record::Records;
use crate::report::Report;
use crate::rounds::Samples;
use crate::row::{Row, Target};

const FASTER: &str = "the peer's throughput";
const PIPELINE: &str = "the time of one MULTI/EXEC pipeline";
const IN_FLIGHT: usize = 64;
/// Why a create may be slower than the peer's put.
pub(super) const CREATE: &str =
    "the script also counts the owner's records and compares their creation times, which the peer does not";

const OWNERS: usize = 64;

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    creates(bench, report).await?;
    one_at_a_time(bench, report).await?;
    in_flight(bench, report).await
}

/// Returns a row of the three contenders, and the ratio of the peer's time to this crate's.
fn row(work: String, [ours, peer, bare]: &[Samples; 3]) -> (Row, Samples) {
    (Row::new(work).ours(micros(ours)).peer(micros(peer)).bare(micros(bare)), peer.over(ours))
}

struct Creates;

impl Round<1> for Creates {
    async fn run<C: Contender>(&self, contender: &C, records: &Records<C>) -> Result<[f64; 1]> {
        Ok([create(contender, records, IN_FLIGHT).await?])
    }
}

/// Creates records of few and of many owners. A batch names the index of each owner, so it matters how many there are.
async fn creates(bench: &Bench, report: &mut Report) -> Result<()> {
    let count = bench.form.count(12_800);
    for (an_owner, least) in [(count, 1.2), (10, 1.0), (100, 0.9)] {
        let owners = count.div_ceil(an_owner);
        let name = match owners {
            1 => "one owner".to_owned(),
            _ => format!("{} owners of {an_owner}", thousands(owners)),
        };
        bench.step(&format!("creates of {name}"));
        let [creates] = all_three(bench, &Sets::new(count, owners), Creates).await?;
        let (line, ratio) = row(format!("create (`put_if_version` 0), 64 in flight, {name}"), &creates);
        let line = line.ratio(FASTER, &ratio, Target::AtLeast(least)).reason(CREATE);
        let line = line.ratio(PIPELINE, &creates[0].over(&creates[2]), None);
        report.note_noise(&format!("create, {name}"), &creates[2]);
        report.add(if an_owner == 10 { line.headline(&ratio) } else { line });
    }
    Ok(())
}

struct OneAtATime;

impl Round<3> for OneAtATime {
    async fn run<C: Contender>(&self, contender: &C, records: &Records<C>) -> Result<[f64; 3]> {
        Ok([
            create(contender, records, 1).await?,
            swap(contender, records, 1, 1).await?,
            get(contender, records, 1, records.len()).await?,
        ])
    }
}

async fn one_at_a_time(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("calls one at a time");
    let sets = Sets::new(bench.form.count(1_000), OWNERS);
    let [creates, swaps, gets] = all_three(bench, &sets, OneAtATime).await?;
    let (line, ratio) = row("create (`put_if_version` 0), one at a time".into(), &creates);
    report.add(line.ratio(FASTER, &ratio, Target::AtLeast(0.9)));
    let (line, ratio) = row("`put_if_version` with `Keep`, one at a time".into(), &swaps);
    report.add(line.ratio(FASTER, &ratio, Target::AtLeast(1.0)));
    let (line, ratio) = row("`get`, one at a time".into(), &gets);
    let line = line.ratio("the time of a bare HMGET", &gets[0].over(&gets[2]), Target::AtMost(1.15));
    report.add(line.ratio(FASTER, &ratio, None));
    report.note_noise("`get`, one at a time", &gets[2]);
    Ok(())
}

struct InFlight;

impl Round<3> for InFlight {
    async fn run<C: Contender>(&self, contender: &C, records: &Records<C>) -> Result<[f64; 3]> {
        let puts = put(contender, records, IN_FLIGHT).await?;
        let swaps =
            swap(contender, records, IN_FLIGHT, 1).await? + swap(contender, records, IN_FLIGHT, 2).await?;
        Ok([puts, swaps / 2.0, get(contender, records, IN_FLIGHT, 2 * records.len()).await?])
    }
}

async fn in_flight(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("calls 64 in flight");
    let sets = Sets::new(bench.form.count(5_120), OWNERS);
    let [puts, swaps, gets] = all_three(bench, &sets, InFlight).await?;
    let (line, ratio) = row("`put` of new records, 64 in flight".into(), &puts);
    let line =
        line.ratio(FASTER, &ratio, Target::AtLeast(0.7)).ratio(PIPELINE, &puts[0].over(&puts[2]), None);
    report.add(line);
    let (line, ratio) = row("`put_if_version` with `Keep`, 64 in flight, distinct tasks".into(), &swaps);
    let line = line.headline(&ratio).ratio(FASTER, &ratio, Target::AtLeast(1.7));
    report.add(line.ratio("the time of a bare HSET", &swaps[0].over(&swaps[2]), None));
    let (line, ratio) = row("`get`, 64 in flight".into(), &gets);
    let line = line.ratio(FASTER, &ratio, Target::AtLeast(1.1)).reason(
        "a `get` is one `HMGET`, and the client runs fewer instructions than the bare command does; the rest is the server and the kernel",
    );
    report.add(line.ratio("the time of a bare HMGET", &gets[0].over(&gets[2]), Target::AtMost(1.1)));
    report.note_noise("`put`", &puts[2]);
    report.note_noise("`put_if_version`", &swaps[2]);
    report.note_noise("`get`", &gets[2]);
    Ok(())
}
