//! `lua/list.lua`: the ids of one page.

use once_cell::sync::Lazy;
use redis::Value;

use super::{Arguments, Encoder, Reply, Script, integer};

pub(crate) static LIST: Lazy<Script<List, Listed>> =
    Lazy::new(|| Script::new(include_str!("../../lua/list.lua")));

#[derive(Debug)]
pub(crate) struct List {
    pub(crate) idx: String,
    /// The creation time at which the previous page ended.
    pub(crate) below: Option<u64>,
    pub(crate) limit: usize,
}

/// Index members, newest first: the task id as stored, and its creation time in microseconds.
#[derive(Debug)]
pub(crate) struct Listed(pub(crate) Vec<(Vec<u8>, u64)>);

impl Arguments for List {
    fn key_count(&self) -> usize {
        1
    }

    fn encode(&self, to: &mut impl Encoder) {
        to.key("idx", &self.idx);
        match self.below {
            Some(below) => to.arg("below", below),
            None => to.arg("below", "+inf"),
        }
        to.arg("limit", self.limit);
    }
}

impl Reply for Listed {
    fn decode(words: &[&str], lists: Vec<Value>) -> Option<Self> {
        let ([], Ok([Value::Array(members)])) = (words, <[Value; 1]>::try_from(lists)) else { return None };
        let mut listed = Vec::with_capacity(members.len() / 2);
        let mut members = members.into_iter();
        while let Some(id) = members.next() {
            let Value::BulkString(id) = id else { return None };
            listed.push((id, integer(&members.next()?)?));
        }
        Some(Self(listed))
    }
}
