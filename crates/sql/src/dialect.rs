//! Flink's dialect for sqlparser: backticks quote identifiers, and `TABLE t` is an expression that names a table.
//!
//! It identifies itself as the generic dialect, since sqlparser decides many things by asking which dialect it has.

use std::any::TypeId;

use sqlparser::ast::{Expr, Ident};
use sqlparser::dialect::{Dialect, GenericDialect};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Token;

/// The prefix under which [`FlinkDialect`] wraps the table of `TABLE t`.
pub(crate) const TABLE_PREFIX: &str = "TABLE";

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct FlinkDialect;

impl Dialect for FlinkDialect {
    fn dialect(&self) -> TypeId {
        TypeId::of::<GenericDialect>()
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        ch == '`'
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        ch.is_alphabetic() || ch == '_'
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        ch.is_alphanumeric() || ch == '_' || ch == '$'
    }

    fn supports_filter_during_aggregation(&self) -> bool {
        true
    }

    fn supports_comment_optimizer_hint(&self) -> bool {
        true
    }

    fn supports_group_by_expr(&self) -> bool {
        true
    }

    fn supports_subquery_as_function_arg(&self) -> bool {
        false
    }

    fn parse_prefix(&self, parser: &mut Parser) -> Option<Result<Expr, ParserError>> {
        if !parser.peek_keyword(Keyword::TABLE) {
            return None;
        }
        let prefix = Ident::with_span(parser.next_token().span, TABLE_PREFIX);
        let relation = if parser.peek_token_ref().token == Token::LParen {
            parser.parse_expr()
        } else {
            parser.parse_object_name(false).map(|name| {
                let idents = name.0.into_iter().filter_map(|part| part.as_ident().cloned()).collect();
                Expr::CompoundIdentifier(idents)
            })
        };
        Some(relation.map(|value| Expr::Prefixed { prefix, value: Box::new(value) }))
    }
}
