//! Checks an expression of Prometheus against the metrics that exist.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::parser::{self, AggregateExpr, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};

/// The labels that Prometheus adds to each series of a target.
const OF_TARGETS: [&str; 2] = ["job", "instance"];
/// The names that a histogram has in the text.
const OF_HISTOGRAMS: [&str; 3] = ["_bucket", "_sum", "_count"];

/// What a text of Prometheus shows: the labels of each name.
pub struct Shown(BTreeMap<String, BTreeSet<String>>);

impl Shown {
    pub fn parse(text: &str) -> Self {
        let mut shown: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("mcp_")) {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let of_name = shown.entry(name.to_owned()).or_default();
            let pairs = labels.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty());
            of_name.extend(pairs.map(|pair| pair.split_once("=\"").unwrap().0.to_owned()));
        }
        Self(shown)
    }
}

pub struct Check {
    pub shown: Vec<Shown>,
    /// The labels of each metric, as the tables of the library and of the console list them.
    pub tables: BTreeMap<String, Vec<String>>,
}

impl Check {
    /// Returns the metrics that an expression names. Fails if one of them, or one of their labels, does not exist.
    pub fn names(&self, expr: &str) -> Result<BTreeSet<String>, String> {
        // Grafana replaces its variable before Prometheus reads the expression.
        let parsed = parser::parse(&expr.replace("$__rate_interval", "5m"))?;
        let mut visitor = Visitor { check: self, names: BTreeSet::new() };
        walk_expr(&mut visitor, &parsed)?;
        if visitor.names.is_empty() { Err("no metric".to_owned()) } else { Ok(visitor.names) }
    }

    /// Returns the metric of a selector, and its labels.
    fn labels(&self, selector: &VectorSelector) -> Result<(String, BTreeSet<&str>), String> {
        let name = selector.name.as_deref().ok_or("a selector has no name")?;
        let shown = self.shown.iter().find_map(|shown| shown.0.get(name));
        let shown = shown.ok_or_else(|| format!("no process shows {name}"))?;
        let of_histogram = OF_HISTOGRAMS.iter().find_map(|suffix| name.strip_suffix(suffix));
        let metric =
            [Some(name), of_histogram].into_iter().flatten().find(|name| self.tables.contains_key(*name));
        let metric = metric.ok_or_else(|| format!("no table lists {name}"))?;
        let listed = &self.tables[metric];
        if let Some(label) = shown.iter().find(|label| *label != "le" && !listed.contains(label)) {
            return Err(format!("no table lists the label {label} of {name}"));
        }
        Ok((metric.to_owned(), shown.iter().map(String::as_str).chain(OF_TARGETS).collect()))
    }
}

struct Visitor<'a> {
    check: &'a Check,
    names: BTreeSet<String>,
}

impl ExprVisitor for Visitor<'_> {
    type Error = String;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, String> {
        match expr {
            Expr::VectorSelector(selector) => self.select(selector)?,
            Expr::MatrixSelector(selector) => self.select(&selector.vs)?,
            Expr::Aggregate(AggregateExpr { expr, modifier: Some(modifier), .. }) => {
                let mut inner = Selectors::default();
                walk_expr(&mut inner, expr)?;
                for selector in &inner.0 {
                    let (name, labels) = self.check.labels(selector)?;
                    if let Some(label) =
                        modifier.labels().labels.iter().find(|label| !labels.contains(label.as_str()))
                    {
                        return Err(format!("{name} has no label {label}"));
                    }
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

impl Visitor<'_> {
    fn select(&mut self, selector: &VectorSelector) -> Result<(), String> {
        let (name, labels) = self.check.labels(selector)?;
        if let Some(matcher) =
            selector.matchers.matchers.iter().find(|matcher| !labels.contains(matcher.name.as_str()))
        {
            return Err(format!("{name} has no label {}", matcher.name));
        }
        self.names.insert(name);
        Ok(())
    }
}

/// The selectors of an expression.
#[derive(Default)]
struct Selectors(Vec<VectorSelector>);

impl ExprVisitor for Selectors {
    type Error = String;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, String> {
        match expr {
            Expr::VectorSelector(selector) => self.0.push(selector.clone()),
            Expr::MatrixSelector(selector) => self.0.push(selector.vs.clone()),
            _ => {}
        }
        Ok(true)
    }
}
