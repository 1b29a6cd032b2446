//! Evaluates the expressions of one policy for one request: variables once and only when they are
//! used, everything within one budget.

use std::collections::HashMap;

use serde_json::Value;

use crate::admit::{Attributes, Cluster};
use crate::cel::authorizer::Authorizer;
use crate::cel::{self, authorizer};
use crate::error::Result;
use crate::webhook::matching::{Versioned, request};

/// What expressions see of a request.
pub struct Scope {
    object: cel::Value,
    old: cel::Value,
    request: cel::Value,
    namespace: cel::Value,
    /// Its resource, for `authorizer.requestResource`.
    resource: [(&'static str, String); 5],
}

impl Scope {
    pub async fn of(attributes: &Attributes<'_>, versioned: &Versioned<'_>, cluster: &dyn Cluster) -> Result<Scope> {
        let namespace = match attributes.namespace {
            "" => None,
            _ if attributes.is("", "namespaces") => None,
            name => cluster.get("", "namespaces", "", name).await?,
        };
        let mut request = request(attributes, &versioned.version, "");
        if let Some(request) = request.as_object_mut() {
            request.remove("uid");
        }
        let text = |text: &str| text.to_owned();
        Ok(Scope {
            object: cel::from_json(&versioned.object),
            old: cel::from_json(&versioned.old),
            request: cel::from_json(&request),
            namespace: namespace.map_or(cel::Value::Null, |namespace| cel::from_json(&namespace)),
            resource: [
                ("group", text(attributes.group)),
                ("resource", text(&attributes.descriptor.plural)),
                ("subresource", text(attributes.subresource)),
                ("namespace", text(attributes.namespace)),
                ("name", text(request["name"].as_str().unwrap_or_default())),
            ],
        })
    }

    /// With a new state of the object: mutations follow one another.
    pub fn set_object(&mut self, object: &Value) {
        self.object = cel::from_json(object);
    }
}

/// One run of a policy's expressions.
pub struct Evaluation<'a> {
    scope: &'a Scope,
    params: &'a cel::Value,
    authorizer: cel::Value,
    request_resource: cel::Value,
    declared: &'a [Value],
    computed: HashMap<String, Result<cel::Value, String>>,
    pub(super) budget: u64,
}

impl<'a> Evaluation<'a> {
    pub fn new(scope: &'a Scope, params: &'a cel::Value, policy: &'a Value, authorizer: cel::Value) -> Self {
        let mut resource = None;
        if let cel::Value::Opaque(opaque) = &authorizer
            && let Some(authorizer) = opaque.downcast_ref::<Authorizer>()
        {
            let question = scope.resource.iter().fold(authorizer.clone(), |all, (part, value)| all.with(part, value));
            resource = Some(cel::Value::Opaque(std::sync::Arc::new(question)));
        }
        Self {
            scope,
            params,
            authorizer,
            request_resource: resource.unwrap_or(cel::Value::Null),
            declared: policy["spec"]["variables"].as_array().map_or(&[][..], Vec::as_slice),
            computed: HashMap::new(),
            budget: cel::BUDGET,
        }
    }

    /// The value of an expression, or why there is none.
    pub fn value(&mut self, expression: &str) -> Result<cel::Value, String> {
        let value = self.value_before(expression, self.declared.len());
        if self.is_spent() {
            // Nothing that this one expression alone did.
            return value;
        }
        value.map_err(|why| format!("expression '{}' resulted in error: {why}", expression.trim()))
    }

    /// Whether nothing more can be evaluated.
    pub fn is_spent(&self) -> bool {
        self.budget == 0
    }

    /// Gives what follows a budget of its own.
    pub fn renew(&mut self) {
        self.budget = cel::BUDGET;
    }

    /// The same for an expression that sees only the first few variables.
    fn value_before(&mut self, expression: &str, known: usize) -> Result<cel::Value, String> {
        let program = cel::cached(expression).map_err(|error| error.to_string())?;
        for name in program.variables() {
            self.compute(name, known);
        }
        let used = program.variables().iter();
        let members = used.clone().filter_map(|name| match self.computed.get(name) {
            Some(Ok(value)) => Some((name.clone(), value.clone())),
            _ => None,
        });
        let variables = [
            ("object", self.scope.object.clone()),
            ("oldObject", self.scope.old.clone()),
            ("request", self.scope.request.clone()),
            ("namespaceObject", self.scope.namespace.clone()),
            ("params", self.params.clone()),
            ("authorizer", self.authorizer.clone()),
            ("authorizer.requestResource", self.request_resource.clone()),
            ("variables", cel::map(members)),
        ];
        let (outcome, spent) = program.evaluate_within(&variables, cel::PER_CALL_LIMIT.min(self.budget));
        self.budget = self.budget.saturating_sub(spent);
        if self.budget == 0 {
            return Err("validation failed due to running out of cost budget, no further validation rules will be run"
                .to_owned());
        }
        outcome.map_err(|error| {
            let why = error.to_string();
            // A variable that could not be computed is missing: its own error says more.
            let missing = used.clone().find_map(|name| match self.computed.get(name) {
                Some(Err(own)) if why == format!("no such key: {name}") => {
                    Some(format!("composited variable {name:?} fails to evaluate: {own}"))
                }
                _ => None,
            });
            missing.unwrap_or(why)
        })
    }

    /// Variables may use those declared before them.
    fn compute(&mut self, name: &str, known: usize) {
        if self.computed.contains_key(name) {
            return;
        }
        let Some(at) = self.declared[..known].iter().position(|variable| variable["name"] == name) else { return };
        let expression = self.declared[at]["expression"].as_str().unwrap_or_default();
        let value = self.value_before(expression, at);
        self.computed.insert(name.to_owned(), value);
    }
}

/// What the match conditions of a policy or webhook say.
#[derive(Debug, PartialEq, Eq)]
pub enum Conditions {
    Met,
    NotMet,
    /// Some could not be evaluated, and none is false.
    Failed(String),
}

pub fn conditions(of: &Value, run: &mut Evaluation<'_>) -> Conditions {
    let mut errors = Vec::new();
    for condition in of["matchConditions"].as_array().into_iter().flatten() {
        match run.value(condition["expression"].as_str().unwrap_or_default()) {
            Ok(cel::Value::Bool(true)) => {}
            Ok(_) => return Conditions::NotMet,
            Err(why) => errors.push(why),
        }
    }
    match errors.as_slice() {
        [] => Conditions::Met,
        [one] => Conditions::Failed(one.clone()),
        all => Conditions::Failed(format!("[{}]", all.join(", "))),
    }
}

/// The match conditions of a webhook.
pub async fn match_conditions(
    webhook: &Value,
    attributes: &Attributes<'_>,
    versioned: &Versioned<'_>,
    cluster: &dyn Cluster,
) -> Result<Conditions> {
    if webhook["matchConditions"].as_array().is_none_or(Vec::is_empty) {
        return Ok(Conditions::Met);
    }
    let scope = Scope::of(attributes, versioned, cluster).await?;
    let evaluate =
        |authorizer| conditions(webhook, &mut Evaluation::new(&scope, &cel::Value::Null, &Value::Null, authorizer));
    Ok(authorizer::answered(cluster, attributes.user, evaluate).await)
}
