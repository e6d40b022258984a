package cookie

import "github.com/holdfast-sessions/holdfast/driver"

// Encode returns a payload.
func Encode(id driver.ID, rec driver.Record) []byte { return appendPayload(nil, id, rec) }

// Decode reads one.
var Decode = decode
