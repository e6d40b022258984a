package cookie

var (
	Encode = encode
	Decode = decode
)
