package jsonobject_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/jsonobject"
)

func TestMembers(t *testing.T) {
	const begin, malformed, follows = "it does not begin with {", "malformed JSON", "something follows after the last }"
	for _, tt := range []struct{ in, want, err string }{
		{in: `{}`},
		{in: ` { } `},
		{in: `{"b": 1.50, "a":{"b":[ 1 ]},"B":null}`, want: `b=1.50;a={"b":[ 1 ]};B=null;`},
		{in: `{"\u0061":1}`, want: `a=1;`},
		{in: `{"":"\u0061"}`, want: `="\u0061";`},
		{in: ``, err: begin},
		{in: `null`, err: begin},
		{in: `[]`, err: begin},
		{in: `"{}"`, err: begin},
		{in: `{`, err: malformed},
		{in: `{"a"}`, err: malformed},
		{in: `{"a":}`, err: malformed},
		{in: `{a:1}`, err: malformed},
		{in: `{1:1}`, err: malformed},
		{in: `{"a":1,}`, want: "a=1;", err: malformed},
		{in: `{"a":1 "b":2}`, want: "a=1;", err: malformed},
		{in: `{"a":1]`, want: "a=1;", err: malformed},
		{in: `{"a":1,"a":1}`, want: "a=1;", err: "a is there twice"},
		{in: `{"a":1,"\u0061":1}`, want: "a=1;", err: "a is there twice"},
		{in: `{"a":1}{}`, want: "a=1;", err: follows},
		{in: `{"a":1}x`, want: "a=1;", err: follows},
		{in: `{"a":1,"stop":2,"b":3}`, want: "a=1;", err: "stopped"},
	} {
		got := ""
		err := jsonobject.Members([]byte(tt.in), func(name string, value json.RawMessage) error {
			if name == "stop" {
				return errors.New("stopped")
			}
			got += name + "=" + string(value) + ";"
			return nil
		})
		message := ""
		if err != nil {
			message = err.Error()
		}
		if got != tt.want || message != tt.err {
			t.Errorf("Members(%s) calls with %q and returns %q, want %q and %q", tt.in, got, message, tt.want, tt.err)
		}
	}
}
