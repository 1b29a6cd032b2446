//! Objects made from OpenAPI schemas: mostly of the right shape, with strange values, and now and
//! then something of the wrong type. The same seed makes the same objects.

use serde_json::{Map, Value, json};

const WORDS: [&str; 24] = [
    "",
    "a",
    "sample",
    "Always",
    "None",
    "10.0.0.1",
    "::1",
    "10.0.0.0/8",
    "5%",
    "-1%",
    "1Gi",
    "-1",
    "1.5",
    "9e999",
    "Ä ß/",
    "*",
    "tcp",
    "kubernetes.io/x",
    "metadata.name",
    "metadata.labels['",
    "x=y,!z",
    "true",
    "2026-01-01T00:00:00Z",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
];
const NUMBERS: [i64; 10] = [0, 1, 2, 3, 80, -1, 70_000, i32::MAX as i64, i64::MAX, i64::MIN];

pub struct Generator<'a> {
    schemas: &'a Value,
    state: u64,
    /// One value in so many is of the wrong type; 0: none.
    wrong: u64,
}

impl<'a> Generator<'a> {
    pub fn new(schemas: &'a Value, seed: u64) -> Self {
        Self { schemas, state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, wrong: 0 }
    }

    /// An object like `sample` with random members. Early rounds change one member only.
    pub fn object(&mut self, sample: &Value, round: u64) -> Value {
        let (kind, version) = (sample["kind"].as_str().unwrap(), sample["apiVersion"].as_str().unwrap());
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let wanted = json!({"group": group, "kind": kind, "version": version});
        let schemas = self.schemas.as_object().unwrap();
        let known = |schema: &&Value| {
            schema["x-kubernetes-group-version-kind"]
                .as_array()
                .is_some_and(|kinds| kinds.len() == 1 && kinds[0] == wanted)
        };
        let schema = schemas.values().find(known).unwrap_or_else(|| panic!("no schema of {wanted}"));
        self.wrong = [0, 40, 12][(round % 3) as usize];
        let mut object = sample.clone();
        for (name, schema) in schema["properties"].as_object().unwrap() {
            if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata") && (round > 4 || self.below(3) == 0) {
                let made = self.value(schema, 0);
                merge(&mut object[name], made, !round.is_multiple_of(4));
            }
        }
        if round.is_multiple_of(5) {
            let made = self.value(&schema["properties"]["metadata"].clone(), 0);
            merge(&mut object["metadata"], made, true);
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.insert("name".to_owned(), sample["metadata"]["name"].clone());
            }
        }
        object
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % limit
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }

    fn value(&mut self, schema: &Value, depth: usize) -> Value {
        if self.wrong > 0 && self.below(self.wrong) == 0 {
            return self.pick(&[
                json!(null),
                json!(7),
                json!("x"),
                json!([]),
                json!({}),
                json!([{}]),
                json!(true),
                json!(1.5),
            ]);
        }
        let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
        if let Some(name) = reference.and_then(|reference| reference.rsplit('/').next()) {
            let schemas = self.schemas;
            return self.value(&schemas[name], depth);
        }
        if let Some(either) = schema["oneOf"].as_array() {
            let chosen = self.pick(either);
            return self.value(&chosen, depth);
        }
        match schema["type"].as_str().unwrap_or("") {
            "object" => self.members(schema, depth),
            "array" => {
                let count = if depth > 9 { 0 } else { self.below(3) };
                (0..count).map(|_| self.value(&schema["items"], depth + 1)).collect()
            }
            "string" => match schema["enum"].as_array() {
                Some(allowed) if self.below(5) > 0 => self.pick(allowed),
                _ => self.pick(&WORDS).into(),
            },
            "integer" | "number" => self.pick(&NUMBERS).into(),
            "boolean" => (self.below(2) == 0).into(),
            _ => json!({"some": "thing"}),
        }
    }

    fn members(&mut self, schema: &Value, depth: usize) -> Value {
        let mut members = Map::new();
        if schema["additionalProperties"].is_object() {
            for _ in 0..self.below(3) {
                let key = self.pick(&WORDS).to_owned();
                members.insert(key, self.value(&schema["additionalProperties"], depth + 1));
            }
        }
        let required = schema["required"].as_array();
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            let needed = required.is_some_and(|names| names.iter().any(|required| required == name));
            let chance = if needed {
                9
            } else if depth > 7 {
                1
            } else {
                4
            };
            if self.below(10) < chance && (needed || depth <= 9) {
                members.insert(name.clone(), self.value(member, depth + 1));
            }
        }
        Value::Object(members)
    }
}

/// Puts `made` over `base`, member by member where `deep`.
fn merge(base: &mut Value, made: Value, deep: bool) {
    match (base, made) {
        (Value::Object(base), Value::Object(made)) if deep => {
            for (name, value) in made {
                merge(base.entry(name).or_insert(Value::Null), value, deep);
            }
        }
        (base, made) => *base = made,
    }
}
