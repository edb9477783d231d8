//! A script as statements. Parsing works on the script's own tokens: nothing is rewritten, so positions are the user's.

use sqlparser::ast::{Expr, Ident, Query};
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};
use weir_types::Result;

use crate::ddl;
use crate::dialect::FlinkDialect;
use crate::error::{invalid, syntax, unsupported};

/// One statement with its place.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) location: Location,
    pub(crate) kind: StatementKind,
}

/// What a statement asks for.
#[derive(Debug)]
pub(crate) enum StatementKind {
    CreateTable(Box<CreateTable>),
    CreateView(CreateView),
    Drop { what: &'static str, name: Ident, if_exists: bool },
    Set { key: String, value: String },
    Reset { key: Option<String> },
    Insert(Insert),
    Explain(Vec<Insert>),
    ExplainQuery(Box<Query>),
}

/// `CREATE TABLE`.
#[derive(Debug)]
pub(crate) struct CreateTable {
    pub(crate) name: Ident,
    pub(crate) if_not_exists: bool,
    pub(crate) columns: Vec<ColumnDefinition>,
    pub(crate) watermark: Option<(Ident, Expr)>,
    pub(crate) primary_key: Vec<Ident>,
    pub(crate) options: Vec<(TableOption, String)>,
    pub(crate) end: Location,
}

/// A key of `WITH (…)`.
#[derive(Debug)]
pub(crate) struct TableOption {
    pub(crate) key: String,
    pub(crate) location: Location,
    pub(crate) value_location: Location,
}

/// A column of a `CREATE TABLE`.
#[derive(Debug)]
pub(crate) struct ColumnDefinition {
    pub(crate) name: Ident,
    pub(crate) kind: ColumnKind,
}

/// How a column is declared.
#[derive(Debug)]
pub(crate) enum ColumnKind {
    Physical(ddl::SqlType),
    Computed(Box<Expr>),
    Metadata { sql_type: ddl::SqlType, key: Option<String>, is_virtual: bool },
}

/// `CREATE VIEW`.
#[derive(Debug)]
pub(crate) struct CreateView {
    pub(crate) name: Ident,
    pub(crate) if_not_exists: bool,
    pub(crate) columns: Vec<Ident>,
    pub(crate) query: Box<Query>,
}

/// `INSERT INTO`.
#[derive(Debug)]
pub(crate) struct Insert {
    pub(crate) location: Location,
    pub(crate) table: Ident,
    pub(crate) columns: Vec<Ident>,
    pub(crate) query: Box<Query>,
}

/// Longest statement, blanks counted: it bounds how deep a chain of operators can get.
const STATEMENT_TOKENS_MAX: usize = 20_000;

/// Most statements of a script: it bounds how deep views can stand on views.
const STATEMENTS_MAX: usize = 1000;

/// Parses a whole script.
pub(crate) fn parse(script: &str) -> Result<Vec<Statement>> {
    let start = Location { line: 1, column: 1 };
    let tokens = Tokenizer::new(&FlinkDialect, script)
        .tokenize_with_location()
        .map_err(|error| invalid(error.location, lower_first(&error.message)))?;
    let mut length = 0;
    for token in &tokens {
        length = if token.token == Token::SemiColon { 0 } else { length + 1 };
        if length > STATEMENT_TOKENS_MAX {
            return Err(invalid(
                token.span.start,
                format!("the statement has more than {STATEMENT_TOKENS_MAX} tokens"),
            )
            .with_hint("Split it with views."));
        }
    }
    let parser = Parser::new(&FlinkDialect).with_tokens_with_locations(tokens);
    let mut reader = Reader { parser, script, last: start };
    let mut statements = Vec::new();
    let mut in_set: Option<Location> = None;
    loop {
        while reader.parser.consume_token(&Token::SemiColon) {}
        let location = reader.here();
        if reader.at_end() {
            return match in_set {
                Some(location) => {
                    Err(invalid(location, "the statement set has no END").with_hint("Close it with END;."))
                }
                None => Ok(statements),
            };
        }
        if reader.begin_set() {
            in_set = Some(location);
            continue;
        }
        if in_set.is_some() && reader.word("END") {
            in_set = None;
        } else {
            let kind = reader.statement(location)?;
            if in_set.is_some() && !matches!(kind, StatementKind::Insert(_)) {
                return Err(invalid(location, "a statement set takes INSERT INTO statements only"));
            }
            if statements.len() >= STATEMENTS_MAX {
                return Err(invalid(location, format!("the script has more than {STATEMENTS_MAX} statements")));
            }
            statements.push(Statement { location, kind });
        }
        reader.end_of_statement()?;
    }
}

fn lower_first(text: &str) -> String {
    let mut text = text.to_owned();
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    text
}

/// Reads statements off the tokens.
pub(crate) struct Reader<'a> {
    pub(crate) parser: Parser<'a>,
    script: &'a str,
    last: Location,
}

impl Reader<'_> {
    /// Where the next token starts; at the end, where the last one did.
    pub(crate) fn here(&mut self) -> Location {
        let token = self.parser.peek_token_ref();
        if token.token != Token::EOF && token.span.start.line > 0 {
            self.last = token.span.start;
        }
        self.last
    }

    fn at_end(&self) -> bool {
        self.parser.peek_token_ref().token == Token::EOF
    }

    /// Turns sqlparser's error into ours.
    pub(crate) fn ok<T>(&mut self, result: Result<T, ParserError>) -> Result<T> {
        let here = self.here();
        result.map_err(|error| syntax(error, here))
    }

    /// Whether the next token is this word, unquoted.
    pub(crate) fn peek_word(&self, word: &str) -> bool {
        is_word(self.parser.peek_token_ref(), word)
    }

    /// Consumes the word if it is next.
    pub(crate) fn word(&mut self, word: &str) -> bool {
        let found = self.peek_word(word);
        if found {
            self.parser.advance_token();
        }
        found
    }

    /// Consumes these words if they are next.
    pub(crate) fn words(&mut self, words: &[&str]) -> bool {
        let found = words.iter().enumerate().all(|(n, word)| is_word(self.parser.peek_nth_token_ref(n), word));
        if found {
            words.iter().for_each(|_| self.parser.advance_token());
        }
        found
    }

    /// Consumes the word, or says that it was expected.
    pub(crate) fn expect_word(&mut self, word: &str) -> Result<()> {
        if self.word(word) { Ok(()) } else { self.expected(word) }
    }

    /// Consumes the token, or says that it was expected.
    pub(crate) fn expect(&mut self, token: &Token) -> Result<()> {
        if self.parser.consume_token(token) { Ok(()) } else { self.expected(&token.to_string()) }
    }

    /// An error that says what was expected here.
    pub(crate) fn expected<T>(&mut self, what: &str) -> Result<T> {
        let here = self.here();
        let found = match &self.parser.peek_token_ref().token {
            Token::EOF => "the end of the script".to_owned(),
            token => token.to_string(),
        };
        Err(invalid(here, format!("expected {what}, found {found}")))
    }

    /// An identifier.
    pub(crate) fn identifier(&mut self) -> Result<Ident> {
        let here = self.here();
        if let Token::SingleQuotedString(text) = &self.parser.peek_token_ref().token {
            let text = text.clone();
            return Err(invalid(here, format!("expected an identifier, found '{text}'"))
                .with_hint("Quote identifiers with backticks: `name`."));
        }
        let result = self.parser.parse_identifier();
        self.ok(result)
    }

    /// The name of a table or view: one part.
    pub(crate) fn table_name(&mut self) -> Result<Ident> {
        let name = self.identifier()?;
        let here = self.here();
        if self.parser.peek_token_ref().token == Token::Period {
            return Err(unsupported(
                here,
                "a qualified table name",
                "Use the table's name alone; there are no catalogs.",
            ));
        }
        Ok(name)
    }

    /// A text in single quotes.
    pub(crate) fn text(&mut self, what: &str) -> Result<String> {
        match &self.parser.peek_token_ref().token {
            Token::SingleQuotedString(text) => {
                let text = text.clone();
                self.parser.advance_token();
                Ok(text)
            }
            _ => self.expected(what),
        }
    }

    /// An expression.
    pub(crate) fn expr(&mut self) -> Result<Expr> {
        let result = self.parser.parse_expr();
        self.ok(result)
    }

    /// Identifiers in parentheses.
    pub(crate) fn identifiers(&mut self) -> Result<Vec<Ident>> {
        self.expect(&Token::LParen)?;
        let mut names = vec![self.identifier()?];
        while self.parser.consume_token(&Token::Comma) {
            names.push(self.identifier()?);
        }
        self.expect(&Token::RParen)?;
        Ok(names)
    }

    fn query(&mut self) -> Result<Box<Query>> {
        let starts = ["SELECT", "WITH", "VALUES"].iter().any(|word| self.peek_word(word))
            || self.parser.peek_token_ref().token == Token::LParen;
        if !starts {
            return self.expected("a query (SELECT, WITH or VALUES)");
        }
        let result = self.parser.parse_query();
        self.ok(result)
    }

    fn begin_set(&mut self) -> bool {
        self.words(&["EXECUTE", "STATEMENT", "SET", "BEGIN"]) || self.words(&["BEGIN", "STATEMENT", "SET"])
    }

    fn end_of_statement(&mut self) -> Result<()> {
        if self.at_end() || self.parser.consume_token(&Token::SemiColon) {
            return Ok(());
        }
        self.expected("the end of the statement (;)")
    }

    fn statement(&mut self, location: Location) -> Result<StatementKind> {
        if self.word("CREATE") {
            return self.create(location);
        }
        if self.word("DROP") {
            return self.drop();
        }
        if self.word("SET") {
            return self.set(location);
        }
        if self.word("RESET") {
            let key = if self.at_statement_end() {
                None
            } else {
                Some(self.option_text(|token| *token == Token::SemiColon)?)
            };
            return Ok(StatementKind::Reset { key });
        }
        if self.peek_word("INSERT") {
            return Ok(StatementKind::Insert(self.insert()?));
        }
        self.word("EXECUTE");
        if self.peek_word("INSERT") {
            return Ok(StatementKind::Insert(self.insert()?));
        }
        if self.word("EXPLAIN") {
            return self.explain(location);
        }
        if ["SELECT", "WITH", "VALUES"].iter().any(|word| self.peek_word(word)) {
            return Err(unsupported(
                location,
                "a query without INSERT INTO",
                "Write it into a table: CREATE TABLE out (…) \
                WITH ('connector' = 'print'); INSERT INTO out SELECT …",
            ));
        }
        let known = [
            "ALTER", "USE", "SHOW", "DESCRIBE", "DESC", "ANALYZE", "ADD", "REMOVE", "LOAD", "UNLOAD", "DELETE",
            "UPDATE", "TRUNCATE", "CALL", "STOP", "MERGE", "COMPILE", "REFRESH",
        ];
        let word = self.parser.peek_token_ref().token.to_string().to_uppercase();
        if known.contains(&word.as_str()) {
            return Err(unsupported(location, format!("the statement {word}"), SUPPORTED_STATEMENTS));
        }
        self.expected("a statement").map_err(|error: weir_types::Error| error.with_hint(SUPPORTED_STATEMENTS))
    }

    fn at_statement_end(&self) -> bool {
        self.at_end() || self.parser.peek_token_ref().token == Token::SemiColon
    }

    fn create(&mut self, location: Location) -> Result<StatementKind> {
        let here = self.here();
        if self.words(&["OR", "REPLACE"]) || self.words(&["OR", "ALTER"]) {
            return Err(unsupported(here, "CREATE OR REPLACE", "DROP … IF EXISTS first."));
        }
        self.word("TEMPORARY");
        if self.word("TABLE") {
            return Ok(StatementKind::CreateTable(Box::new(self.create_table()?)));
        }
        if self.word("VIEW") {
            let if_not_exists = self.words(&["IF", "NOT", "EXISTS"]);
            let name = self.table_name()?;
            let columns =
                if self.parser.peek_token_ref().token == Token::LParen { self.identifiers()? } else { Vec::new() };
            if self.word("COMMENT") {
                self.text("the comment's text")?;
            }
            self.expect_word("AS")?;
            let query = self.query()?;
            return Ok(StatementKind::CreateView(CreateView { name, if_not_exists, columns, query }));
        }
        let what = self.parser.peek_token_ref().token.to_string().to_uppercase();
        Err(unsupported(location, format!("CREATE {what}"), "CREATE TABLE and CREATE VIEW are."))
    }

    fn drop(&mut self) -> Result<StatementKind> {
        self.word("TEMPORARY");
        let what = if self.word("TABLE") {
            "table"
        } else if self.word("VIEW") {
            "view"
        } else {
            return self.expected("TABLE or VIEW");
        };
        let if_exists = self.words(&["IF", "EXISTS"]);
        Ok(StatementKind::Drop { what, name: self.table_name()?, if_exists })
    }

    fn set(&mut self, location: Location) -> Result<StatementKind> {
        if self.at_statement_end() {
            return Err(unsupported(location, "SET without a key", "Write SET 'key' = 'value'."));
        }
        let key = self.option_text(|token| *token == Token::Eq)?;
        self.expect(&Token::Eq)?;
        let value = self.option_text(|token| *token == Token::SemiColon)?;
        Ok(StatementKind::Set { key, value })
    }

    /// A quoted text, or everything up to a token, as it stands in the script.
    fn option_text(&mut self, stop: impl Fn(&Token) -> bool) -> Result<String> {
        if let Token::SingleQuotedString(text) = &self.parser.peek_token_ref().token {
            let text = text.clone();
            self.parser.advance_token();
            return Ok(text);
        }
        let first = self.here();
        let mut last = None;
        while !self.at_statement_end() && !stop(&self.parser.peek_token_ref().token) {
            last = Some(self.parser.next_token().span.end);
        }
        match last {
            Some(last) => Ok(slice(self.script, first, last).trim().to_owned()),
            None => self.expected("a key or value"),
        }
    }

    fn insert(&mut self) -> Result<Insert> {
        let location = self.here();
        self.expect_word("INSERT")?;
        let here = self.here();
        if self.peek_word("OVERWRITE") {
            return Err(unsupported(here, "INSERT OVERWRITE", "Write INSERT INTO."));
        }
        self.expect_word("INTO")?;
        self.word("TABLE");
        let table = self.table_name()?;
        let here = self.here();
        if self.peek_word("PARTITION") {
            return Err(unsupported(here, "PARTITION of an INSERT", "Select the partition columns."));
        }
        let is_list = self.parser.peek_token_ref().token == Token::LParen
            && !["SELECT", "WITH", "VALUES"].iter().any(|word| is_word(self.parser.peek_nth_token_ref(1), word))
            && self.parser.peek_nth_token_ref(1).token != Token::LParen;
        let columns = if is_list { self.identifiers()? } else { Vec::new() };
        Ok(Insert { location, table, columns, query: self.query()? })
    }

    fn explain(&mut self, location: Location) -> Result<StatementKind> {
        let here = self.here();
        for detail in ["ESTIMATED_COST", "CHANGELOG_MODE", "JSON_EXECUTION_PLAN", "PLAN_ADVICE"] {
            if self.peek_word(detail) {
                return Err(unsupported(here, format!("EXPLAIN {detail}"), "Write EXPLAIN PLAN FOR; it shows all."));
            }
        }
        self.words(&["PLAN", "FOR"]);
        self.word("EXECUTE");
        if self.words(&["STATEMENT", "SET"]) {
            self.expect_word("BEGIN")?;
            let mut inserts = Vec::new();
            while !self.word("END") {
                inserts.push(self.insert()?);
                self.expect(&Token::SemiColon)?;
            }
            return Ok(StatementKind::Explain(inserts));
        }
        if self.peek_word("INSERT") {
            return Ok(StatementKind::Explain(vec![self.insert()?]));
        }
        if self.at_statement_end() {
            return Err(
                invalid(location, "EXPLAIN of nothing").with_hint("Write EXPLAIN INSERT INTO … or EXPLAIN SELECT …")
            );
        }
        Ok(StatementKind::ExplainQuery(self.query()?))
    }
}

const SUPPORTED_STATEMENTS: &str = "Statements are CREATE TABLE, CREATE VIEW, DROP, SET, RESET, INSERT INTO, EXECUTE \
    STATEMENT SET and EXPLAIN.";

/// Whether a token is this word, unquoted, in any case.
pub(crate) fn is_word(token: &TokenWithSpan, word: &str) -> bool {
    matches!(&token.token, Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
}

/// The script's text between two places.
fn slice(script: &str, from: Location, to: Location) -> &str {
    let offset = |location: Location| {
        let line_start = match location.line {
            0 | 1 => 0,
            line => script.match_indices('\n').nth(line as usize - 2).map_or(script.len(), |(at, _)| at + 1),
        };
        let rest = &script[line_start..];
        let column = usize::try_from(location.column.saturating_sub(1)).unwrap_or(usize::MAX);
        line_start + rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at)
    };
    script.get(offset(from)..offset(to)).unwrap_or_default()
}
