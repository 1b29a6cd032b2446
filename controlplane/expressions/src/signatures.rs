//! The declarations of all functions, for the checker: what they take and what they give.
//!
//! One line per function: its name, then its overloads. `(int,int)int` is a function of two ints,
//! `string.(int)string` a method; `A` and `B` stand for any type, the same throughout an overload;
//! `free` is none yet.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::decl::{Decl, Kind};

pub struct Overload {
    /// The receiver first, if it is a method.
    pub args: Vec<Decl>,
    pub method: bool,
    pub result: Decl,
}

static TABLE: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(|| {
    let lines = DECLARED.lines().filter(|line| !line.is_empty());
    lines.filter_map(|line| line.split_once(' ')).map(|(name, rest)| (name, overloads(rest))).collect()
});

pub fn find(name: &str) -> Option<&'static [Overload]> {
    TABLE.get(name).map(Vec::as_slice)
}

fn overloads(text: &str) -> Vec<Overload> {
    text.split(' ').filter_map(overload).collect()
}

fn overload(text: &str) -> Option<Overload> {
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let receiver = text[..open].strip_suffix('.');
    let (inside, result) = (&text[open + 1..close], &text[close + 1..]);
    let args = receiver.into_iter().chain(split(inside)).map(decl).collect();
    Some(Overload { args, method: receiver.is_some(), result: decl(result) })
}

/// The parts between commas that are in no brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    if from < text.len() {
        parts.push(&text[from..]);
    }
    parts
}

fn decl(text: &str) -> Decl {
    if let Some(inner) = text.strip_suffix('>') {
        let (outer, inner) = inner.split_once('<').unwrap_or((inner, "dyn"));
        let mut inner = split(inner).into_iter().map(decl);
        let mut next = || inner.next().unwrap_or_else(Decl::dynamic);
        return match outer {
            "list" => Decl::list(next(), 1),
            "map" => Decl::map(next(), next(), 1),
            _ => Decl::optional(next()),
        };
    }
    Decl::new(match text {
        "bool" => Kind::Bool,
        "int" => Kind::Int,
        "uint" => Kind::Uint,
        "double" => Kind::Double,
        "string" => Kind::String,
        "bytes" => Kind::Bytes,
        "timestamp" => Kind::Timestamp,
        "duration" => Kind::Duration,
        "type" => Kind::Type,
        "null" => Kind::Null,
        "free" => Kind::Free,
        "A" => Kind::Any('A'),
        "B" => Kind::Any('B'),
        "quantity" => Kind::Opaque("kubernetes.Quantity"),
        "ip" => Kind::Opaque("net.IP"),
        "cidr" => Kind::Opaque("net.CIDR"),
        "url" => Kind::Opaque("kubernetes.URL"),
        "semver" => Kind::Opaque("kubernetes.Semver"),
        "format" => Kind::Opaque("kubernetes.NamedFormat"),
        "authorizer" => Kind::Opaque("kubernetes.authorization.Authorizer"),
        "path" => Kind::Opaque("kubernetes.authorization.PathCheck"),
        "group" => Kind::Opaque("kubernetes.authorization.GroupCheck"),
        "resource" => Kind::Opaque("kubernetes.authorization.ResourceCheck"),
        "decision" => Kind::Opaque("kubernetes.authorization.Decision"),
        _ => Kind::Dyn,
    })
}

const DECLARED: &str = "
!_ (bool)bool
-_ (int)int (double)double
_&&_ (bool,bool)bool
_||_ (bool,bool)bool
_?_:_ (bool,A,A)A
_==_ (A,A)bool
_!=_ (A,A)bool
_+_ (int,int)int (uint,uint)uint (double,double)double (string,string)string (bytes,bytes)bytes (list<A>,list<A>)list<A> (timestamp,duration)timestamp (duration,timestamp)timestamp (duration,duration)duration
_-_ (int,int)int (uint,uint)uint (double,double)double (timestamp,timestamp)duration (timestamp,duration)timestamp (duration,duration)duration
_*_ (int,int)int (uint,uint)uint (double,double)double
_/_ (int,int)int (uint,uint)uint (double,double)double
_%_ (int,int)int (uint,uint)uint
_<_ (bool,bool)bool (int,int)bool (int,double)bool (int,uint)bool (uint,uint)bool (uint,double)bool (uint,int)bool (double,double)bool (double,int)bool (double,uint)bool (string,string)bool (bytes,bytes)bool (timestamp,timestamp)bool (duration,duration)bool
_<=_ (bool,bool)bool (int,int)bool (int,double)bool (int,uint)bool (uint,uint)bool (uint,double)bool (uint,int)bool (double,double)bool (double,int)bool (double,uint)bool (string,string)bool (bytes,bytes)bool (timestamp,timestamp)bool (duration,duration)bool
_>_ (bool,bool)bool (int,int)bool (int,double)bool (int,uint)bool (uint,uint)bool (uint,double)bool (uint,int)bool (double,double)bool (double,int)bool (double,uint)bool (string,string)bool (bytes,bytes)bool (timestamp,timestamp)bool (duration,duration)bool
_>=_ (bool,bool)bool (int,int)bool (int,double)bool (int,uint)bool (uint,uint)bool (uint,double)bool (uint,int)bool (double,double)bool (double,int)bool (double,uint)bool (string,string)bool (bytes,bytes)bool (timestamp,timestamp)bool (duration,duration)bool
_[_] (list<A>,int)A (map<A,B>,A)B (optional<list<A>>,int)optional<A> (optional<map<A,B>>,A)optional<B>
_[?_] (list<A>,int)optional<A> (map<A,B>,A)optional<B> (optional<list<A>>,int)optional<A> (optional<map<A,B>>,A)optional<B>
@in (A,list<A>)bool (A,map<A,B>)bool
@not_strictly_false (bool)bool
@pairs (A)list<dyn>
@unpairs (A)map<dyn,dyn>
size (string)int (bytes)int (list<A>)int (map<A,B>)int string.()int bytes.()int list<A>.()int map<A,B>.()int
type (A)type
dyn (A)dyn
int (int)int (uint)int (double)int (string)int (timestamp)int (duration)int
uint (uint)uint (int)uint (double)uint (string)uint
double (double)double (int)double (uint)double (string)double
string (ip)string (cidr)string (string)string (bool)string (int)string (uint)string (double)string (bytes)string (timestamp)string (duration)string
bytes (bytes)bytes (string)bytes
bool (bool)bool (string)bool
timestamp (timestamp)timestamp (string)timestamp (int)timestamp
duration (duration)duration (string)duration (int)duration
matches (string,string)bool string.(string)bool
contains string.(string)bool
startsWith string.(string)bool
endsWith string.(string)bool
charAt string.(int)string
indexOf string.(string)int string.(string,int)int list<A>.(A)int
lastIndexOf string.(string)int string.(string,int)int list<A>.(A)int
lowerAscii string.()string
upperAscii string.()string
trim string.()string
replace string.(string,string)string string.(string,string,int)string
split string.(string)list<string> string.(string,int)list<string>
substring string.(int)string string.(int,int)string
join list<string>.()string list<string>.(string)string
format string.(list<dyn>)string
strings.quote (string)string
reverse list<A>.()list<A>
getFullYear timestamp.()int timestamp.(string)int
getMonth timestamp.()int timestamp.(string)int
getDayOfYear timestamp.()int timestamp.(string)int
getDayOfMonth timestamp.()int timestamp.(string)int
getDate timestamp.()int timestamp.(string)int
getDayOfWeek timestamp.()int timestamp.(string)int
getHours timestamp.()int timestamp.(string)int duration.()int
getMinutes timestamp.()int timestamp.(string)int duration.()int
getSeconds timestamp.()int timestamp.(string)int duration.()int
getMilliseconds timestamp.()int timestamp.(string)int duration.()int
isSorted list<int>.()bool list<uint>.()bool list<double>.()bool list<bool>.()bool list<duration>.()bool list<timestamp>.()bool list<string>.()bool list<bytes>.()bool
sum list<int>.()int list<uint>.()uint list<double>.()double list<duration>.()duration
min list<int>.()int list<uint>.()uint list<double>.()double list<bool>.()bool list<duration>.()duration list<timestamp>.()timestamp list<string>.()string list<bytes>.()bytes
max list<int>.()int list<uint>.()uint list<double>.()double list<bool>.()bool list<duration>.()duration list<timestamp>.()timestamp list<string>.()string list<bytes>.()bytes
slice list<A>.(int,int)list<A>
flatten list<A>.()list<dyn> list<A>.(int)list<dyn>
distinct list<A>.()list<A>
sort list<A>.()list<A>
@sortByAssociatedKeys list<A>.(list<B>)list<A>
lists.range (int)list<int>
find string.(string)string
findAll string.(string)list<string> string.(string,int)list<string>
quantity (string)quantity
isQuantity (string)bool
isInteger quantity.()bool
asInteger quantity.()int
asApproximateFloat quantity.()double
sign (quantity)int
add quantity.(quantity)quantity quantity.(int)quantity
sub quantity.(quantity)quantity quantity.(int)quantity
compareTo quantity.(quantity)int semver.(semver)int
isGreaterThan quantity.(quantity)bool semver.(semver)bool
isLessThan quantity.(quantity)bool semver.(semver)bool
semver (string)semver (string,bool)semver
isSemver (string)bool (string,bool)bool
major semver.()int
minor semver.()int
patch semver.()int
ip (string)ip cidr.()ip
isIP (string)bool
ip.isCanonical (string)bool
family ip.()int
isUnspecified ip.()bool
isLoopback ip.()bool
isLinkLocalUnicast ip.()bool
isLinkLocalMulticast ip.()bool
isGlobalUnicast ip.()bool
cidr (string)cidr
isCIDR (string)bool
containsIP cidr.(string)bool cidr.(ip)bool
containsCIDR cidr.(string)bool cidr.(cidr)bool
prefixLength cidr.()int
masked cidr.()cidr
url (string)url
isURL (string)bool
getScheme url.()string
getHost url.()string
getHostname url.()string
getPort url.()string
getEscapedPath url.()string
getQuery url.()map<string,list<string>>
sets.contains (list<A>,list<A>)bool
sets.equivalent (list<A>,list<A>)bool
sets.intersects (list<A>,list<A>)bool
format.named (string)optional<format>
format.dns1123Label ()format
format.dns1123Subdomain ()format
format.dns1035Label ()format
format.qualifiedName ()format
format.dns1123LabelPrefix ()format
format.dns1123SubdomainPrefix ()format
format.dns1035LabelPrefix ()format
format.labelValue ()format
format.uri ()format
format.uuid ()format
format.byte ()format
format.date ()format
format.datetime ()format
validate format.(string)optional<list<string>>
optional.of (A)optional<A>
optional.ofNonZeroValue (A)optional<A>
optional.none ()optional<free>
hasValue optional<A>.()bool
value optional<A>.()A
or optional<A>.(optional<A>)optional<A>
orValue optional<A>.(A)A
jsonpatch.escapeKey (string)string
path authorizer.(string)path
group authorizer.(string)group
serviceAccount authorizer.(string,string)authorizer
resource group.(string)resource
subresource resource.(string)resource
namespace resource.(string)resource
name resource.(string)resource
fieldSelector resource.(string)resource
labelSelector resource.(string)resource
check path.(string)decision resource.(string)decision
allowed decision.()bool
reason decision.()string
errored decision.()bool
error decision.()string
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_declaration_reads() {
        for line in DECLARED.lines().filter(|line| !line.is_empty()) {
            let (name, rest) = line.split_once(' ').unwrap();
            assert_eq!(find(name).unwrap().len(), rest.split(' ').count(), "{line}");
        }
        let size = &find("size").unwrap()[7];
        assert!(size.method && size.args[0].to_string() == "map(A, B)" && size.result.kind == Kind::Int);
    }
}
