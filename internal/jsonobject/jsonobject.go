// Package jsonobject reads JSON objects strictly: every name is there once, as it is spelt, and nothing follows. To
// encoding/json alone the last of several counts, and "ID" is "id".
package jsonobject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

var errMalformed = errors.New("malformed JSON")

// Members calls f for each member of the object b, in order, with the bytes of its value, which f may keep. It fails if b is
// anything else, if a name is there twice, or with f's error. Its own errors quote nothing but a name that f has accepted.
func Members(b []byte, f func(name string, value json.RawMessage) error) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("it does not begin with {")
	}
	seen := make(map[string]bool)
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return errMalformed
		}
		if seen[name] {
			return fmt.Errorf("%s is there twice", name)
		}
		seen[name] = true
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return errMalformed
		}
		if err := f(name, value); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return errMalformed
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows after the last }")
	}
	return nil
}
