//! `/v1/embeddings` over HTTP.

mod common;

use common::Server;
use serde_json::{Value, json};

fn ask(server: &Server, fields: Value) -> common::Answer {
    let mut body = json!({"model": "demo"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    server.post("/v1/embeddings", &body.to_string())
}

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap();
    let values = |one: &Value| {
        one["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    };
    data.iter().map(values).collect()
}

#[test]
fn texts_become_vectors_the_same_however_they_are_asked_for() {
    let server = Server::demo(&[]);
    let texts = ["A dog runs.", "A puppy is running.", "fn main() {}"];
    let together = ask(&server, json!({"input": texts})).json();
    assert_eq!((&together["object"], &together["model"]), (&json!("list"), &json!("demo")));
    for (i, one) in together["data"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&one["object"], &one["index"]), (&json!("embedding"), &json!(i)));
    }
    let together_vectors = vectors(&together);
    assert_eq!(together_vectors.len(), 3);
    for vector in &together_vectors {
        let length: f32 = vector.iter().map(|v| v * v).sum();
        assert!((length - 1.0).abs() < 1e-5 && vector.len() == together_vectors[0].len(), "{length}");
    }

    // One by one, as tokens, below `/v1` or not, and with experts from the drive.
    let streaming = Server::start(common::DEMO.as_ref(), &["--streaming", "--expert-cache-gb", "0.02"]);
    let mut tokens = 0;
    for (text, expected) in texts.iter().zip(&together_vectors) {
        let ids = server.post("/tokenize", &json!({"prompt": text}).to_string()).json()["tokens"].clone();
        tokens += ids.as_array().unwrap().len();
        for (server, input) in
            [(&server, json!(text)), (&server, json!([ids])), (&server, ids), (&streaming, json!([text]))]
        {
            assert_eq!(&vectors(&ask(server, json!({"input": input})).json())[0], expected, "{input}");
        }
    }
    assert_eq!(together["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
    let short = server.post("/embeddings", &json!({"input": texts[0], "dimensions": 8}).to_string()).json();
    let short = &vectors(&short)[0];
    let ratio = short[0] / together_vectors[0][0];
    assert!(short.len() == 8 && ratio > 1.0, "{short:?}");
    assert!((short.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);

    // An answer to the same text is what it was.
    let asked = json!({"model": "demo", "prompt": texts[2], "max_tokens": 8, "temperature": 0}).to_string();
    let answer = || server.post("/v1/completions", &asked).json()["choices"][0]["text"].clone();
    let before = answer();
    ask(&server, json!({"input": texts[2]}));
    assert_eq!(answer(), before);
}

#[test]
fn what_cannot_become_a_vector_is_refused_by_name() {
    let server = Server::demo(&["--max-context", "64"]);
    for (fields, param, words) in [
        (json!({"input": "a ".repeat(200)}), "input", "context"),
        (json!({"input": ["a", "b ".repeat(200)]}), "input[1]", "context"),
        (json!({"input": vec![5; 64]}), "input", "context"),
        (json!({"input": [1_000_000]}), "input", "vocabulary"),
        (json!({"input": "a", "pooling": "mean"}), "pooling", "last"),
        (json!({"input": "a", "dimensions": 100_000}), "dimensions", "at most"),
        (json!({"input": "a", "encoding_format": "ubinary"}), "encoding_format", "base64"),
        (json!({}), "input", "required"),
    ] {
        let answer = ask(&server, fields.clone());
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{fields}: {error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{fields}: {error}");
    }
    assert_eq!(ask(&server, json!({"input": vec![5; 63]})).status, 200);
    assert_eq!(server.post("/v1/embeddings", r#"{"model": "other", "input": "a"}"#).status, 404);
    let ignored = ask(&server, json!({"input": "a", "strange": 1, "user": "u"}));
    assert!(ignored.status == 200 && ignored.head.contains("x-ignored-fields: strange"), "{}", ignored.head);
}
