//! Lists of parameters, for statements about many rows.

/// `($1, $2), ($3, $4)`: the values of `rows` rows of `columns` columns, from parameter `first`.
pub(in crate::store) fn values(first: usize, rows: usize, columns: usize) -> String {
    let mut text = String::with_capacity(rows * columns * 6);
    let mut number = first;
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            if column > 0 {
                text.push_str(", ");
            }
            text.push('$');
            text.push_str(&number.to_string());
            number += 1;
        }
        text.push(')');
    }
    text
}

/// The same with each parameter cast to its column's type, for a list that stands by itself:
/// there Postgres has nothing else to tell the types from.
pub(in crate::store) fn typed_values(first: usize, rows: usize, types: &[&str]) -> String {
    let mut text = String::with_capacity(rows * types.len() * 20);
    let mut number = first;
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for (column, of_type) in types.iter().enumerate() {
            if column > 0 {
                text.push_str(", ");
            }
            text.push_str(&format!("CAST(${number} AS {of_type})"));
            number += 1;
        }
        text.push(')');
    }
    text
}
