//! `CREATE TABLE` and data types, on sqlparser's tokens: what sqlparser itself does not know of Flink's DDL.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};
use sqlparser::ast::DataType as SqlAstType;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Location, Token, Tokenizer};
use weir_functions::types;
use weir_types::{Error, Result};

use crate::dialect::FlinkDialect;
use crate::error::{invalid, unsupported};
use crate::script::{ColumnDefinition, ColumnKind, CreateTable, Reader, TableOption};

/// A data type as declared.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SqlType {
    pub(crate) data_type: DataType,
    pub(crate) nullable: bool,
    /// Longest text or bytes, where `VARCHAR(n)`, `CHAR(n)` and the like say so; and whether values are padded to it.
    pub(crate) length: Option<(u32, bool)>,
}

/// The type of a CAST, as sqlparser read it.
pub(crate) fn cast_type(data_type: &SqlAstType, location: Location) -> Result<SqlType> {
    parse_type(&data_type.to_string(), location)
}

/// A type from its text.
pub(crate) fn parse_type(text: &str, location: Location) -> Result<SqlType> {
    let unknown = || invalid(location, format!("{text} is not a type")).with_hint(TYPES);
    let tokens = Tokenizer::new(&FlinkDialect, text).tokenize().map_err(|_| unknown())?;
    let mut parser =
        TypeParser { parser: Parser::new(&FlinkDialect).with_tokens(tokens), closed: 0, place: Some(location) };
    let sql_type = parser.parse()?;
    if parser.parser.peek_token_ref().token != Token::EOF {
        return Err(unknown());
    }
    Ok(sql_type)
}

const TYPES: &str = "Types are BOOLEAN, TINYINT, SMALLINT, INT, BIGINT, FLOAT, DOUBLE, DECIMAL(p, s), STRING, \
    VARCHAR(n), CHAR(n), BYTES, VARBINARY(n), DATE, TIME(p), TIMESTAMP(p), TIMESTAMP_LTZ(p), ROW<…>, ARRAY<…>, MAP<…>.";

/// Reads a type off the tokens of a parser.
struct TypeParser<'a> {
    parser: Parser<'a>,
    /// `>` that a `>>` token has closed ahead of time.
    closed: u8,
    /// Where to place errors, if the tokens have no place of their own.
    place: Option<Location>,
}

impl TypeParser<'_> {
    fn here(&self) -> Location {
        self.place.unwrap_or(self.parser.peek_token_ref().span.start)
    }

    fn word(&mut self, word: &str) -> bool {
        let found = crate::script::is_word(self.parser.peek_token_ref(), word);
        if found {
            self.parser.advance_token();
        }
        found
    }

    fn expected<T>(&self, what: &str) -> Result<T> {
        Err(invalid(self.here(), format!("expected {what}, found {}", self.parser.peek_token_ref().token)))
    }

    fn parse(&mut self) -> Result<SqlType> {
        let here = self.here();
        let Token::Word(word) = self.parser.peek_token_ref().token.clone() else { return self.expected("a type") };
        self.parser.advance_token();
        let plain = |data_type| SqlType { data_type, nullable: true, length: None };
        let name = word.value.to_uppercase();
        let mut sql_type = match name.as_str() {
            "BOOLEAN" | "BOOL" => plain(DataType::Boolean),
            "TINYINT" => plain(DataType::Int8),
            "SMALLINT" => plain(DataType::Int16),
            "INT" | "INTEGER" => plain(DataType::Int32),
            "BIGINT" => plain(DataType::Int64),
            "FLOAT" => plain(DataType::Float32),
            "DOUBLE" => {
                self.word("PRECISION");
                plain(DataType::Float64)
            }
            "DECIMAL" | "DEC" | "NUMERIC" => plain(self.decimal(here)?),
            "STRING" => plain(DataType::Utf8),
            "VARCHAR" => SqlType { length: self.length(None)?.map(|n| (n, false)), ..plain(DataType::Utf8) },
            "CHAR" => SqlType { length: self.length(Some(1))?.map(|n| (n, true)), ..plain(DataType::Utf8) },
            "BYTES" => plain(DataType::Binary),
            "VARBINARY" => SqlType { length: self.length(None)?.map(|n| (n, false)), ..plain(DataType::Binary) },
            "BINARY" => SqlType { length: self.length(Some(1))?.map(|n| (n, true)), ..plain(DataType::Binary) },
            "DATE" => plain(DataType::Date32),
            "TIME" => plain(self.time(here)?),
            "TIMESTAMP" => plain(self.timestamp(here)?),
            "TIMESTAMP_LTZ" => plain(types::ltz(types::time_unit(self.precision(here, 6)?))),
            "ROW" => plain(self.row()?),
            "ARRAY" => plain(DataType::List(Arc::new(self.element("element")?))),
            "MAP" => plain(self.map()?),
            "INTERVAL" => plain(self.interval()?),
            "MULTISET" | "RAW" | "VARIANT" => return Err(unsupported(here, format!("the type {name}"), TYPES)),
            _ => return Err(invalid(here, format!("{} is not a type", word.value)).with_hint(TYPES)),
        };
        self.suffix(&mut sql_type)?;
        Ok(sql_type)
    }

    fn suffix(&mut self, sql_type: &mut SqlType) -> Result<()> {
        loop {
            if self.word("NOT") {
                if !self.word("NULL") {
                    return self.expected("NULL");
                }
                sql_type.nullable = false;
            } else if self.word("NULL") {
                sql_type.nullable = true;
            } else if self.word("ARRAY") {
                let element = Field::new("element", sql_type.data_type.clone(), sql_type.nullable);
                *sql_type = SqlType { data_type: DataType::List(Arc::new(element)), nullable: true, length: None };
            } else {
                return Ok(());
            }
        }
    }

    fn numbers(&mut self) -> Result<Vec<u32>> {
        let mut numbers = Vec::new();
        if self.parser.consume_token(&Token::LParen) {
            loop {
                match &self.parser.peek_token_ref().token {
                    Token::Number(text, false) if text.parse::<u32>().is_ok() => {
                        numbers.push(text.parse().unwrap_or(u32::MAX));
                        self.parser.advance_token();
                    }
                    _ => return self.expected("a number"),
                }
                if !self.parser.consume_token(&Token::Comma) {
                    break;
                }
            }
            if !self.parser.consume_token(&Token::RParen) {
                return self.expected(")");
            }
        }
        Ok(numbers)
    }

    fn length(&mut self, default: Option<u32>) -> Result<Option<u32>> {
        let here = self.here();
        match self.numbers()?.as_slice() {
            [] => Ok(default),
            // 2147483647 is how Flink spells a STRING.
            [n] if *n >= 1 => Ok((*n < i32::MAX as u32).then_some(*n)),
            _ => Err(invalid(here, "a length is one number, at least 1")),
        }
    }

    fn precision(&mut self, here: Location, default: u8) -> Result<u8> {
        match self.numbers()?.as_slice() {
            [] => Ok(default),
            [precision @ 0..=9] => Ok(*precision as u8),
            _ => Err(invalid(here, "the precision of a time is a number from 0 to 9")),
        }
    }

    fn decimal(&mut self, here: Location) -> Result<DataType> {
        let (precision, scale) = match self.numbers()?.as_slice() {
            [] => (10, 0),
            [precision] => (*precision, 0),
            [precision, scale] => (*precision, *scale),
            _ => return Err(invalid(here, "a DECIMAL has a precision and a scale")),
        };
        if !(1..=38).contains(&precision) || scale > precision {
            return Err(invalid(here, format!("DECIMAL({precision}, {scale}) does not exist"))
                .with_hint("The precision is 1 to 38, the scale 0 to the precision."));
        }
        Ok(DataType::Decimal128(precision as u8, scale as i8))
    }

    fn time(&mut self, here: Location) -> Result<DataType> {
        let precision = self.precision(here, 0)?;
        self.zone(here)?;
        Ok(match types::time_unit(precision) {
            TimeUnit::Millisecond => DataType::Time32(TimeUnit::Millisecond),
            unit => DataType::Time64(unit),
        })
    }

    fn timestamp(&mut self, here: Location) -> Result<DataType> {
        let unit = types::time_unit(self.precision(here, 6)?);
        Ok(if self.zone(here)? { types::ltz(unit) } else { DataType::Timestamp(unit, None) })
    }

    /// `WITHOUT TIME ZONE`, or `WITH LOCAL TIME ZONE` (true).
    fn zone(&mut self, here: Location) -> Result<bool> {
        let local = if self.word("WITHOUT") {
            false
        } else if self.word("WITH") {
            if !self.word("LOCAL") {
                return Err(unsupported(here, "WITH TIME ZONE", "Use TIMESTAMP_LTZ, an instant shown in local time."));
            }
            true
        } else {
            return Ok(false);
        };
        if self.word("TIME") && self.word("ZONE") { Ok(local) } else { self.expected("TIME ZONE") }
    }

    fn open(&mut self) -> Result<Token> {
        for (open, close) in [(Token::Lt, Token::Gt), (Token::LParen, Token::RParen)] {
            if self.parser.consume_token(&open) {
                return Ok(close);
            }
        }
        self.expected("<")
    }

    fn close(&mut self, close: &Token) -> Result<()> {
        if *close == Token::Gt {
            if self.closed > 0 {
                self.closed -= 1;
                return Ok(());
            }
            if self.parser.consume_token(&Token::ShiftRight) {
                self.closed += 1;
                return Ok(());
            }
        }
        if self.parser.consume_token(close) { Ok(()) } else { self.expected(&format!("{close} or ,")) }
    }

    fn comma(&mut self) -> bool {
        self.closed == 0 && self.parser.consume_token(&Token::Comma)
    }

    fn row(&mut self) -> Result<DataType> {
        let close = self.open()?;
        let mut fields: Vec<Field> = Vec::new();
        loop {
            let here = self.here();
            let Token::Word(name) = self.parser.peek_token_ref().token.clone() else {
                return self.expected("a field name");
            };
            self.parser.advance_token();
            if fields.iter().any(|field| *field.name() == name.value) {
                return Err(invalid(here, format!("field {} is declared twice", name.value)));
            }
            let SqlType { data_type, nullable, .. } = self.parse()?;
            fields.push(Field::new(name.value, data_type, nullable));
            if matches!(self.parser.peek_token_ref().token, Token::SingleQuotedString(_)) {
                self.parser.advance_token();
            }
            if !self.comma() {
                break;
            }
        }
        self.close(&close)?;
        Ok(DataType::Struct(fields.into()))
    }

    fn element(&mut self, name: &str) -> Result<Field> {
        let close = self.open()?;
        let SqlType { data_type, nullable, .. } = self.parse()?;
        self.close(&close)?;
        Ok(Field::new(name, data_type, nullable))
    }

    fn map(&mut self) -> Result<DataType> {
        let close = self.open()?;
        let key = self.parse()?;
        if !self.comma() {
            return self.expected(",");
        }
        let value = self.parse()?;
        self.close(&close)?;
        let fields =
            vec![Field::new("keys", key.data_type, false), Field::new("values", value.data_type, value.nullable)];
        Ok(DataType::Map(Arc::new(Field::new("entries", DataType::Struct(fields.into()), false)), false))
    }

    fn interval(&mut self) -> Result<DataType> {
        let unit = |parser: &mut Self| -> Result<Option<bool>> {
            for (word, is_month) in
                [("YEAR", true), ("MONTH", true), ("DAY", false), ("HOUR", false), ("MINUTE", false), ("SECOND", false)]
            {
                if parser.word(word) {
                    parser.numbers()?;
                    return Ok(Some(is_month));
                }
            }
            Ok(None)
        };
        let Some(months) = unit(self)? else { return self.expected("YEAR, MONTH, DAY, HOUR, MINUTE or SECOND") };
        if self.word("TO") && unit(self)?.is_none() {
            return self.expected("a unit");
        }
        Ok(if months { DataType::Interval(IntervalUnit::YearMonth) } else { DataType::Duration(TimeUnit::Millisecond) })
    }
}

impl Reader<'_> {
    fn sql_type(&mut self) -> Result<SqlType> {
        // The type parser takes the parser over and gives it back, so that both read the same tokens.
        let parser = std::mem::replace(&mut self.parser, Parser::new(&FlinkDialect));
        let mut types = TypeParser { parser, closed: 0, place: None };
        let result = types.parse();
        let closed = types.closed;
        self.parser = types.parser;
        if result.is_ok() && closed > 0 {
            return self.expected("no further >");
        }
        result
    }

    /// Behind `CREATE TABLE`.
    pub(crate) fn create_table(&mut self) -> Result<CreateTable> {
        let if_not_exists = self.words(&["IF", "NOT", "EXISTS"]);
        let mut table = CreateTable {
            name: self.table_name()?,
            if_not_exists,
            columns: Vec::new(),
            watermark: None,
            primary_key: Vec::new(),
            options: Vec::new(),
            end: self.here(),
        };
        self.expect(&Token::LParen)?;
        loop {
            self.table_item(&mut table)?;
            if !self.parser.consume_token(&Token::Comma) {
                break;
            }
        }
        table.end = self.here();
        if !self.parser.consume_token(&Token::RParen) {
            return self.expected(", or )");
        }
        if self.word("COMMENT") {
            self.text("the comment's text")?;
        }
        let here = self.here();
        for clause in ["PARTITIONED", "DISTRIBUTED"] {
            if self.peek_word(clause) {
                return Err(unsupported(here, format!("{clause} BY"), "Leave it out."));
            }
        }
        if self.word("WITH") {
            table.end = self.here();
            self.expect(&Token::LParen)?;
            while !self.parser.consume_token(&Token::RParen) {
                let option = self.table_option()?;
                table.options.push(option);
                if !self.parser.consume_token(&Token::Comma) {
                    self.expect(&Token::RParen)?;
                    break;
                }
            }
        }
        let here = self.here();
        if self.peek_word("LIKE") {
            return Err(unsupported(here, "CREATE TABLE … LIKE", "Write the columns and options out."));
        }
        if self.peek_word("AS") {
            return Err(unsupported(here, "CREATE TABLE … AS SELECT", "Create the table, then INSERT INTO it."));
        }
        Ok(table)
    }

    fn table_option(&mut self) -> Result<(TableOption, String)> {
        let location = self.here();
        let key = self.text("an option's key in single quotes")?;
        self.expect(&Token::Eq)?;
        let value_location = self.here();
        let value = self.text("the option's value in single quotes")?;
        Ok((TableOption { key, location, value_location }, value))
    }

    fn table_item(&mut self, table: &mut CreateTable) -> Result<()> {
        let here = self.here();
        if self.words(&["WATERMARK", "FOR"]) {
            let column = self.identifier()?;
            if self.parser.peek_token_ref().token == Token::Period {
                return Err(unsupported(
                    here,
                    "a watermark on a nested field",
                    "Declare a computed column: ts AS a.b.",
                ));
            }
            self.expect_word("AS")?;
            if table.watermark.is_some() {
                return Err(invalid(here, "a table has one WATERMARK at most"));
            }
            table.watermark = Some((column, self.expr()?));
            return Ok(());
        }
        let is_key = |reader: &Self| crate::script::is_word(reader.parser.peek_nth_token_ref(1), "KEY");
        let mut key = self.peek_word("PRIMARY") && is_key(self);
        if !key && self.peek_word("CONSTRAINT") {
            self.parser.advance_token();
            self.identifier()?;
            key = true;
        }
        if !key {
            let column = self.column(table)?;
            table.columns.push(column);
            return Ok(());
        }
        self.expect_word("PRIMARY")?;
        self.expect_word("KEY")?;
        let columns = self.identifiers()?;
        self.set_key(table, columns, here)
    }

    fn set_key(&mut self, table: &mut CreateTable, columns: Vec<sqlparser::ast::Ident>, here: Location) -> Result<()> {
        if !self.words(&["NOT", "ENFORCED"]) {
            return Err(invalid(here, "a PRIMARY KEY is not enforced").with_hint("Add NOT ENFORCED behind it."));
        }
        if !table.primary_key.is_empty() {
            return Err(invalid(here, "a table has one PRIMARY KEY at most"));
        }
        table.primary_key = columns;
        Ok(())
    }

    fn column(&mut self, table: &mut CreateTable) -> Result<ColumnDefinition> {
        let name = self.identifier()?;
        if self.word("AS") {
            let kind = ColumnKind::Computed(Box::new(self.expr()?));
            self.comment()?;
            return Ok(ColumnDefinition { name, kind });
        }
        let sql_type = self.sql_type()?;
        let kind = if self.word("METADATA") {
            let key = if self.word("FROM") { Some(self.text("the metadata key in single quotes")?) } else { None };
            ColumnKind::Metadata { sql_type, key, is_virtual: self.word("VIRTUAL") }
        } else {
            ColumnKind::Physical(sql_type)
        };
        let here = self.here();
        if self.words(&["PRIMARY", "KEY"]) {
            self.set_key(table, vec![name.clone()], here)?;
        }
        self.comment()?;
        Ok(ColumnDefinition { name, kind })
    }

    fn comment(&mut self) -> Result<(), Error> {
        if self.word("COMMENT") {
            self.text("the comment's text")?;
        }
        Ok(())
    }
}
