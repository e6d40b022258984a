package mysql

// Parse returns the hosts and the table that a URL names.
func Parse(url string) (addrs []string, table string, err error) {
	c, err := parse(url)
	if err != nil {
		return nil, "", err
	}
	return c.Addrs, c.Name, nil
}
