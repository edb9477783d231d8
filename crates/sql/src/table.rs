//! `CREATE TABLE`: columns bound, options checked against the connector's descriptor.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::DataType;
use sqlparser::ast::Spanned;
use sqlparser::tokenizer::Location;
use weir_functions::types;
use weir_types::Result;
use weir_types::connector::{ConnectorKind, LATE_ROWS_TABLE};
use weir_types::graph::ConnectorSpec;

use crate::bind::{Context, Scope};
use crate::catalog::{Origin, Table, Watermark};
use crate::ddl::SqlType;
use crate::error::{invalid, nearest, placed, start};
use crate::rel::{Column, Role, substitute};
use crate::script::{ColumnKind, CreateTable, TableOption};

/// The table that a `CREATE TABLE` declares.
pub(crate) fn create(definition: &CreateTable, at: Location, time_zone: &str) -> Result<Table> {
    let connector = connector(&definition.options, definition.end)?;
    let late_rows_table = connector.options.get(LATE_ROWS_TABLE).cloned();
    let mut names = BTreeSet::new();
    for column in &definition.columns {
        if !names.insert(&column.name.value) {
            return Err(invalid(column.name.span.start, format!("column {} is declared twice", column.name.value)));
        }
    }
    let mut table = Table {
        name: definition.name.value.clone(),
        location: definition.name.span.start,
        columns: Vec::new(),
        origins: Vec::new(),
        watermark: None,
        primary_key: Vec::new(),
        connector,
        late_rows_table,
    };
    stored_columns(definition, &mut table)?;
    computed_columns(definition, &mut table, time_zone)?;
    if let Some((name, expr)) = &definition.watermark {
        set_watermark(&mut table, name, expr, time_zone)?;
    }
    for name in &definition.primary_key {
        let index = position(&table, &name.value, name.span.start)?;
        if table.origins[index] != Origin::Physical {
            return Err(invalid(name.span.start, format!("column {} of the PRIMARY KEY is not stored", name.value)));
        }
        table.columns[index].nullable = false;
        table.primary_key.push(index);
    }
    if table.columns.is_empty() {
        return Err(invalid(at, format!("table {} has no columns", table.name)));
    }
    Ok(table)
}

fn position(table: &Table, name: &str, at: Location) -> Result<usize> {
    table.columns.iter().position(|column| column.name == name).ok_or_else(|| {
        let error = invalid(at, format!("column {name} does not exist"));
        match nearest(name, table.columns.iter().map(|column| column.name.as_str())) {
            Some(near) => error.with_hint(format!("Did you mean {near}? Names are case-sensitive.")),
            None => error,
        }
    })
}

/// Physical and metadata columns; computed ones get a place, to be filled.
fn stored_columns(definition: &CreateTable, table: &mut Table) -> Result<()> {
    for column in &definition.columns {
        let name = column.name.value.clone();
        let (declared, origin) = match &column.kind {
            ColumnKind::Physical(SqlType { data_type, nullable, .. }) => {
                (Column::plain(name, data_type.clone(), *nullable), Origin::Physical)
            }
            ColumnKind::Computed(_) => {
                let unknown = datafusion::common::ScalarValue::Null;
                (Column::plain(name, DataType::Null, true), Origin::Computed(datafusion::logical_expr::lit(unknown)))
            }
            ColumnKind::Metadata { sql_type, key, is_virtual } => {
                let at = column.name.span.start;
                let key = key.clone().unwrap_or_else(|| name.clone());
                let native = metadata(table.connector.kind, &key, at)?;
                if !types::casts_implicitly(&native.data_type, &sql_type.data_type) {
                    return Err(invalid(
                        at,
                        format!(
                            "metadata '{key}' is {}, not {}",
                            types::name(&native.data_type),
                            types::name(&sql_type.data_type)
                        ),
                    ));
                }
                let nullable = sql_type.nullable;
                (
                    Column::plain(name, sql_type.data_type.clone(), nullable),
                    Origin::Metadata { key, native, is_virtual: *is_virtual },
                )
            }
        };
        table.columns.push(declared);
        table.origins.push(origin);
    }
    Ok(())
}

/// The connector's metadata column of this key.
fn metadata(kind: ConnectorKind, key: &str, at: Location) -> Result<Column> {
    let known = kind.descriptor().metadata;
    let Some((_, sql_type)) = known.iter().find(|(name, _)| *name == key) else {
        let error = invalid(at, format!("connector '{kind}' has no metadata '{key}'"));
        let keys: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        return Err(if keys.is_empty() { error } else { error.with_hint(format!("It has {}.", keys.join(", "))) });
    };
    let declared = crate::ddl::parse_type(sql_type, at)?;
    Ok(Column::plain(key, declared.data_type, declared.nullable))
}

fn computed_columns(definition: &CreateTable, table: &mut Table, time_zone: &str) -> Result<()> {
    // A computed column sees what is stored: its own number, and those of other computed columns, cannot occur.
    let visible: Vec<usize> =
        (0..table.columns.len()).filter(|index| !matches!(table.origins[*index], Origin::Computed(_))).collect();
    let stored: Vec<Column> = visible.iter().map(|index| table.columns[*index].clone()).collect();
    let scope = Scope { columns: &stored, alias: Some(&definition.name.value) };
    for (index, column) in definition.columns.iter().enumerate() {
        let ColumnKind::Computed(expr) = &column.kind else { continue };
        let cx = Context::new(scope, start(expr.span(), column.name.span.start), time_zone);
        let value = cx.bind(expr)?;
        if value.data_type == DataType::Null {
            return Err(invalid(cx.at, format!("column {} has no type", column.name.value)).with_hint("CAST the NULL."));
        }
        table.columns[index].data_type = value.data_type;
        table.columns[index].nullable = value.nullable;
        table.origins[index] =
            Origin::Computed(substitute(&value.expr, &mut |stored| crate::rel::column(visible[stored])));
    }
    Ok(())
}

fn set_watermark(
    table: &mut Table,
    name: &sqlparser::ast::Ident,
    expr: &sqlparser::ast::Expr,
    time_zone: &str,
) -> Result<()> {
    let at = name.span.start;
    let column = position(table, &name.value, at)?;
    let data_type = table.columns[column].data_type.clone();
    if !matches!(data_type, DataType::Timestamp(..)) {
        return Err(invalid(
            at,
            format!("a watermark follows a TIMESTAMP, but {} is {}", name.value, types::name(&data_type)),
        )
        .with_hint("Compute one: ts AS TO_TIMESTAMP(text)."));
    }
    let scope = Scope { columns: &table.columns, alias: Some(&table.name) };
    let cx = Context::new(scope, start(expr.span(), at), time_zone);
    let value = cx.bind(expr)?;
    if !matches!(value.data_type, DataType::Timestamp(..)) {
        return Err(invalid(cx.at, format!("the watermark is {}, not a TIMESTAMP", value.type_name())));
    }
    let value = cx.cast(value, &data_type)?;
    table.watermark = Some(Watermark { column, expr: value.expr });
    table.columns[column].role = Role::Rowtime;
    Ok(())
}

fn connector(options: &[(TableOption, String)], end: Location) -> Result<ConnectorSpec> {
    let names = || ConnectorKind::ALL.iter().map(|kind| kind.as_str());
    let list = || names().collect::<Vec<_>>().join(", ");
    let Some((option, name)) = options.iter().find(|(option, _)| option.key == "connector") else {
        return Err(invalid(end, "the table has no option 'connector'")
            .with_hint(format!("Add WITH ('connector' = '…'). Connectors are {}.", list())));
    };
    let Some(kind) = ConnectorKind::parse(name) else {
        let error = invalid(option.value_location, format!("there is no connector '{name}'"));
        return Err(match nearest(name, names()) {
            Some(near) => error.with_hint(format!("Did you mean '{near}'?")),
            None => error.with_hint(format!("Connectors are {}.", list())),
        });
    };
    let descriptor = kind.descriptor();
    let mut values = BTreeMap::new();
    for (option, value) in options.iter().filter(|(option, _)| option.key != "connector") {
        let Some(spec) = descriptor.options.iter().find(|spec| spec.key == option.key) else {
            let error = invalid(option.location, format!("connector '{kind}' has no option '{}'", option.key));
            let keys = || descriptor.options.iter().map(|spec| spec.key);
            return Err(match nearest(&option.key, keys()) {
                Some(near) => error.with_hint(format!("Did you mean '{near}'?")),
                None if descriptor.options.is_empty() => error.with_hint("It has none."),
                None => error.with_hint(format!("Its options are {}.", keys().collect::<Vec<_>>().join(", "))),
            });
        };
        spec.check(value).map_err(|error| placed(option.value_location, error))?;
        if values.insert(option.key.clone(), value.clone()).is_some() {
            return Err(invalid(option.location, format!("option '{}' is given twice", option.key)));
        }
    }
    if let Some(missing) = descriptor.options.iter().find(|spec| spec.required && !values.contains_key(spec.key)) {
        return Err(
            invalid(end, format!("connector '{kind}' needs the option '{}'", missing.key)).with_detail(missing.doc)
        );
    }
    Ok(ConnectorSpec { kind, options: values })
}
