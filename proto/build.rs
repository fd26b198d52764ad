//! Generates the wire format and, from `fields.toml`, the field catalogue.

use std::fmt::Write as _;
use std::{env, fs, path::PathBuf};

#[derive(serde::Deserialize)]
struct Catalogue {
    field: Vec<Field>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Field {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    families: Vec<String>,
    #[serde(default)]
    kinds: Vec<String>,
    doc: String,
    #[serde(default)]
    json: String,
    #[serde(default)]
    unit: String,
    #[serde(default)]
    absent: String,
    source: String,
    #[serde(default)]
    tier: String,
    #[serde(default)]
    ocsf: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=fields.toml");
    tonic_prost_build::configure()
        .bytes(".sumun.v1.Delivery.body")
        .compile_protos(
            &[
                "proto/sumun/v1/event.proto",
                "proto/sumun/v1/ingest.proto",
                "proto/sumun/v1/query.proto",
            ],
            &["proto"],
        )?;
    tonic_prost_build::configure().compile_protos(&["proto/cri/runtime.proto"], &["proto/cri"])?;
    let catalogue: Catalogue = toml::from_str(&fs::read_to_string("fields.toml")?)?;
    fs::write(out.join("catalogue.rs"), generate(&catalogue)?)?;
    Ok(())
}

/// `proc.exe.path` -> `ProcExePath`.
fn variant(name: &str) -> String {
    name.split(['.', '_'])
        .map(|word| {
            let (first, rest) = word.split_at(1);
            first.to_uppercase() + rest
        })
        .collect()
}

fn generate(catalogue: &Catalogue) -> Result<String, Box<dyn std::error::Error>> {
    let mut ids = String::new();
    let mut rows = String::new();
    let mut all = String::new();
    for field in &catalogue.field {
        let id = variant(&field.name);
        let kind = match field.kind.as_str() {
            "string" => "Str",
            "int" => "Int",
            "bool" => "Bool",
            "time" => "Time",
            "list<string>" => "StrList",
            "list<image>" => "ImageList",
            other => return Err(format!("{}: unknown type {other}", field.name).into()),
        };
        let tier = match field.tier.as_str() {
            "kernel" => "Kernel",
            "" => "Agent",
            other => return Err(format!("{}: unknown tier {other}", field.name).into()),
        };
        writeln!(
            ids,
            "    /// {} `{}`: {}",
            field.kind, field.name, field.doc
        )?;
        writeln!(ids, "    {id},")?;
        writeln!(all, "    FieldId::{id},")?;
        writeln!(
            rows,
            "    FieldInfo {{ id: FieldId::{id}, name: {:?}, column: {:?}, ty: FieldType::{kind}, \
             json_string: {}, unit: {:?}, families: &{:?}, kinds: &{:?}, doc: {:?}, absent: {:?}, \
             source: {:?}, tier: Tier::{tier}, ocsf: {:?} }},",
            field.name,
            field.name.replace('.', "_"),
            field.json == "string",
            field.unit,
            field.families,
            field.kinds,
            field.doc,
            field.absent,
            field.source,
            field.ocsf,
        )?;
    }
    Ok(format!(
        "/// Every field of the catalogue.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]\n\
         pub enum FieldId {{\n{ids}}}\n\n\
         /// The catalogue, in the order of `fields.toml`; index = `FieldId as usize`.\n\
         pub static FIELDS: &[FieldInfo] = &[\n{rows}];\n\n\
         /// All field ids, in order.\n\
         pub static FIELD_IDS: &[FieldId] = &[\n{all}];\n"
    ))
}
