//! Reading a map back: listing it against asking for its elements by key.
//!
//! Maps like the product's `endpoints`, of several sizes, in a namespace of their own. A listing walks the map from its start again for
//! each part of 32 KiB; by key each element costs the same. Where one becomes cheaper than the other is `BY_KEY_FROM` in
//! `pointsman::kernel`. A and B alternate.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use nft::{Connection, Element, Family, Field, Key, Set, SetData, Table, Transaction};
use pointsman::lab::Namespace;

use crate::report::{Csv, Report, Table as Listing};
use crate::stats::Spread;

/// Elements per transaction when loading.
const CHUNK: u32 = 8192;

/// Options of `read`.
#[derive(Debug, Args)]
pub struct Options {
    /// Elements of the map
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000])]
    elements: Vec<u32>,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// Measures, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    anyhow::ensure!(options.rounds > 0 && !options.elements.is_empty(), "nothing to measure");
    let mut report = Report::begin("read", out)?;
    let mut csv = Csv::new("elements,round,listing_us,by_key_us");
    let heading = format!("## Reading a map back, ms: median over {} rounds [quartiles]\n", options.rounds);
    let mut table = Listing::new(&["elements", "listing", "by key", "by key, us per element"]);
    for count in &options.elements {
        eprintln!("{count} elements");
        let rounds = Namespace::anonymous()?.run(|| measure(*count, options.rounds))?;
        for (round, [listing, by_key]) in rounds.iter().enumerate() {
            csv.row(&[count, &round, &listing.as_micros(), &by_key.as_micros()]);
        }
        let over = |index: usize, scale: f64| Spread::of(rounds.iter().map(|round| round[index].as_secs_f64() * scale));
        let each = over(1, 1e6 / f64::from(*count));
        table.row(&[count, &format!("{:.1}", over(0, 1e3)), &format!("{:.1}", over(1, 1e3)), &format!("{each:.2}")]);
    }
    report.raw("read", &csv)?;
    report.say(heading);
    report.say(table);
    report.end()
}

/// In the calling thread's namespace.
fn measure(count: u32, rounds: usize) -> anyhow::Result<Vec<[Duration; 2]>> {
    let mut connection = Connection::open()?;
    let data = SetData::Value(vec![Field::Ipv4Addr, Field::InetService]);
    let set = Set::map(Family::Ip, "bench", "endpoints", [Field::Mark, Field::Mark], data);
    let set = Set { size: Some((2 * count).next_power_of_two().max(1 << 16)), ..set };
    let mut transaction = Transaction::new();
    transaction.add_table(&Table::new(Family::Ip, "bench"));
    transaction.add_set(&set);
    connection.commit(&transaction)?;
    for first in (0..count).step_by(CHUNK as usize) {
        transaction.clear();
        let mut list = transaction.add_to(&set, &set.key);
        for number in first..count.min(first + CHUNK) {
            let value = Key::new().ipv4((0x0a80_0001 + number).into()).port(8080);
            let comment = format!("bench/service-{}", number / 10);
            list.push(&Element::value(key(number).as_bytes(), value.as_bytes()).comment(&comment));
        }
        drop(list);
        connection.commit(&transaction)?;
    }
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let mut seen = [0; 2];
        let begin = Instant::now();
        connection.elements(&set, |element| {
            black_box(&element);
            seen[0] += 1;
        })?;
        let listing = begin.elapsed();
        let begin = Instant::now();
        let missing = connection.lookup(&set, (0..count).map(key), |element| {
            black_box(&element);
            seen[1] += 1;
        })?;
        let by_key = begin.elapsed();
        anyhow::ensure!(seen == [count; 2] && missing == 0, "saw {seen:?} of {count} elements, {missing} missing");
        times.push([listing, by_key]);
    }
    Ok(times)
}

/// Ten slots to a pool.
fn key(number: u32) -> Key {
    Key::new().mark((1 + number / 10) << 12).mark(number % 10)
}
